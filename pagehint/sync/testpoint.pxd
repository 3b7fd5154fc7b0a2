"""Test points: named places at which a test can stop one thread while others run. They exist in a debug build only.

A point is a string. `tests/helpers/points.py` writes a point's name into the table below, and the next thread that
comes there is stopped, once. If it has the GIL, it releases it meanwhile. After 20 seconds it goes on by itself.
"""

cdef extern from *:
    """
    #ifdef PAGEHINT_DEBUG
    #include <stdint.h>
    #include <string.h>
    #include <unistd.h>

    enum { PH_HOLD_UNUSED, PH_HOLD_WAITS, PH_HOLD_HOLDS, PH_HOLD_OVER, PH_HOLD_EXPIRED };
    enum { PH_HOLDS = 8, PH_HOLD_LOOKS = 100000 };      /* looks of 200 microseconds: 20 seconds and more */
    typedef struct ph_hold {
        char point[64];
        char until[64];         /* a thread that comes to this point sets the stopped one going; empty: none does */
        int32_t state;
    } ph_hold;

    /* One table for the process, although every module defines it: the dynamic linker keeps one such unique object. */
    extern ph_hold ph_holds[PH_HOLDS];
    __asm__(".type ph_holds, %gnu_unique_object");
    ph_hold ph_holds[PH_HOLDS];

    static void ph_hold_here(ph_hold *hold)
    {
        PyThreadState *python = NULL;
        int looks, gil = PyGILState_Check();
        int32_t holds = PH_HOLD_HOLDS;
        /* This thread would need the GIL to go on. The one that comes to `until` may keep the GIL and wait for a lock
         * that this one has, as a fork does. So this thread does not stop. */
        if (gil && hold->until[0]) {
            __atomic_store_n(&hold->state, PH_HOLD_EXPIRED, __ATOMIC_SEQ_CST);
            return;
        }
        if (gil)
            python = PyEval_SaveThread();
        for (looks = 0; looks < PH_HOLD_LOOKS && __atomic_load_n(&hold->state, __ATOMIC_SEQ_CST) == PH_HOLD_HOLDS; looks++)
            usleep(200);
        __atomic_compare_exchange_n(&hold->state, &holds, PH_HOLD_EXPIRED, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        if (python)
            PyEval_RestoreThread(python);
    }

    static void ph_test_point(const char *point)
    {
        int i;
        for (i = 0; i < PH_HOLDS; i++) {
            ph_hold *hold = &ph_holds[i];
            int32_t state = __atomic_load_n(&hold->state, __ATOMIC_SEQ_CST);
            if (state == PH_HOLD_HOLDS && strcmp(hold->until, point) == 0)
                __atomic_compare_exchange_n(&hold->state, &state, PH_HOLD_OVER, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
            if (state == PH_HOLD_WAITS && strcmp(hold->point, point) == 0
                && __atomic_compare_exchange_n(&hold->state, &state, PH_HOLD_HOLDS, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
                ph_hold_here(hold);
        }
    }
    #define PH_TEST_POINT(point) ph_test_point(point)
    #else
    #define PH_TEST_POINT(point) ((void)0)
    #endif
    """
    void test_point "PH_TEST_POINT" (const char *point) noexcept nogil

    # Literals of C: those of Cython would be compiled into every build.
    const char *AT_SLEEP_ANNOUNCED '"at: sleep announced"'
    const char *AT_ABOUT_TO_SLEEP '"at: about to sleep"'
    const char *AT_BIT_TAKEN '"at: bit taken"'
    const char *AT_BETWEEN_PUT_BACK_AND_RE_HINT '"at: between put-back and re-hint"'
    const char *AT_MEMORY_WAITED_FOR '"at: memory waited for"'
    const char *AT_OWNER_WAITED_FOR '"at: owner waited for"'
    const char *AT_BETWEEN_TWO_LOOKS_OF_THE_OWNER '"at: between two looks of the owner"'
    const char *AT_SET_DRAINED '"at: set drained"'
    const char *AT_BEFORE_THE_ENGINE_IS_TOLD '"at: before the engine is told"'
    const char *AT_BEFORE_THE_WITHHOLDING '"at: before the withholding"'
    const char *AT_WITHHELD_NOT_LOOKED_AGAIN '"at: withheld, not looked again"'
    const char *AT_REFUSED_BY_A_LEAF '"at: refused by a leaf"'
    const char *AT_ABOUT_TO_SHARE_A_LEAF '"at: about to share a leaf"'
    const char *AT_BEFORE_THE_HOOK '"at: before the hook"'
    const char *AT_HOOK_ON_ENGINE_OFF '"at: hook on, engine off"'
    const char *AT_FLUSH_ASKED_FOR '"at: flush asked for"'
    const char *AT_END_OF_A_RUN '"at: end of a run"'
    const char *AT_BEFORE_THE_REPORT '"at: before the report"'
    const char *AT_BEFORE_DISABLE_WAITS '"at: before disable waits"'
    const char *AT_FORK '"at: fork"'

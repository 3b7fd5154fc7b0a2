"""Test points: named places at which a test can hold one thread and let another go. Only in a debug build; else nothing.

A point is a string, "at: " and where it is. `tests/points.py` writes into the table below which of them holds the next
thread that gets there, once; a thread that has the GIL lets go of it meanwhile. Nobody is held for ever.
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
        char until[64];         /* somebody who comes to this point lets go who is held at the other; or empty */
        int32_t state;
    } ph_hold;

    /* One table of the process, though each module has this line. */
    extern ph_hold ph_holds[PH_HOLDS];
    __asm__(".type ph_holds, %gnu_unique_object");
    ph_hold ph_holds[PH_HOLDS];

    static void ph_hold_here(ph_hold *hold)
    {
        PyThreadState *python = NULL;
        int looks, gil = PyGILState_Check();
        int32_t holds = PH_HOLD_HOLDS;
        if (gil && hold->until[0]) {        /* who comes there may have the GIL, and wait for what we have: a fork does */
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

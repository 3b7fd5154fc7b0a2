"""Faults on purpose, by which `.ci/sanitize` tests its tools: a sanitizer that misses these would miss real faults.

They are compiled in only where PAGEHINT_CANARY is defined; elsewhere `canary()` is nothing. The environment variable
PAGEHINT_FAULT names the fault that is made.
"""

cdef extern from *:
    """
    #ifdef PAGEHINT_CANARY
    #include <limits.h>
    #include <stdlib.h>
    #include <string.h>

    static void ph_canary(void)
    {
        static int raced;
        const char *fault = getenv("PAGEHINT_FAULT");
        volatile char *bytes;
        volatile int number = INT_MAX;
        if (!fault)
            return;
        if (!strcmp(fault, "overflow") && (bytes = malloc(24))) {
            bytes[24] = 1;
            free((void *)bytes);
        }
        if (!strcmp(fault, "leak"))         /* several: a register or the stack may still hold the last one's address */
            for (number = 0; number < 16; number++)
                if ((bytes = malloc(24)))
                    bytes[0] = 1;
        if (!strcmp(fault, "signed"))
            number = number + 1;
        if (!strcmp(fault, "shift"))
            number = 1 << (number & 63);
        if (!strcmp(fault, "race"))
            raced++;
        if (!strcmp(fault, "unwritten") && (bytes = malloc(24))) {
            if (bytes[5])
                number = 1;
            free((void *)bytes);
        }
    }
    #define PH_CANARY() ph_canary()
    #else
    #define PH_CANARY() ((void)0)
    #endif
    """
    void canary "PH_CANARY" () noexcept nogil

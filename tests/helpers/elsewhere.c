/* Loaded before the C library (LD_PRELOAD): a malloc that places its blocks where it likes, and steps of arenas that take
 * long to open.
 *
 * Blocks of more than 9 MiB are mapped at `block_hint`, once it is set, as an allocator does that hints its addresses.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

char *block_hint;
int step_takes;                 /* microseconds, in any thread but the main one */
static char *first, *end;

void *malloc(size_t size)
{
    static void *(*real)(size_t);
    if (!real)
        real = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
    if (!block_hint || size <= 9 << 20)
        return real(size);
    char *block = mmap(block_hint, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    first = first ? first : block;
    end = block + size;
    block_hint = end + (8 << 20);
    return block == MAP_FAILED ? NULL : block;
}

void free(void *block)
{
    static void (*real)(void *);
    if (!real)
        real = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    if ((char *)block < first || end <= (char *)block)
        real(block);
}

void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
    static void *(*real)(void *, size_t, int, int, int, off_t);
    if (!real)
        real = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    if (step_takes && flags & MAP_FIXED_NOREPLACE && gettid() != getpid())
        usleep(step_takes);
    return real(at, size, protection, flags, file, offset);
}

/* Delays each fsync and fdatasync, for tests of slow disks. Loaded with LD_PRELOAD; the delay is on
 * while the file that SLOW_FSYNC_SWITCH names exists, so that a stack can start at full speed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void delay(void) {
    const char *control = getenv("SLOW_FSYNC_SWITCH");
    if (control && access(control, F_OK) == 0) {
        struct timespec half = {0, 500 * 1000 * 1000};
        nanosleep(&half, NULL);
    }
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    delay();
    return real(fd);
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    delay();
    return real(fd);
}

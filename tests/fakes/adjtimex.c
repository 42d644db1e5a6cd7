/* What adjtimex(2) says, for a program (LD_PRELOAD): the environment's ADJTIMEX is "result status maxerror".
 *
 * A result of -1 is an error (EPERM), as a sandbox that forbids the call makes one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timex.h>

int adjtimex(struct timex *timex) {
    int result = 0, status = 0;
    long error = 0;
    sscanf(getenv("ADJTIMEX"), "%d %d %ld", &result, &status, &error);
    memset(timex, 0, sizeof *timex);
    timex->status = status;
    timex->maxerror = error;
    timex->esterror = error;
    if (result < 0)
        errno = EPERM;
    return result;
}

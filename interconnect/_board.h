/* A seat at a board in C: the memory, how one comes, watches and sleeps, and what one gives and takes. Of _board.c, which
 * shows it to Python, and of ../collectives/_express.c, which makes whole collectives of it.
 */
#ifndef SUPERPOD_BOARD_H
#define SUPERPOD_BOARD_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOOKS 16    /* at the stamps between two looks at the clock */
#define ANYWHERE (PY_SSIZE_T_MAX / 4) /* in an array: what is added to it does not overflow */
#define FAR (16 << 20) /* bytes that cards write before any of it is read: more than stays in the caches */
#define BLOCK 512   /* elements that are added up at a time: their total stays in the first-level cache */

enum { MEETINGS, SET, STAMP, TOLD, STATE }; /* a card's own words: see Board._state */

typedef struct {
    PyObject_HEAD
    Py_buffer memory, state; /* keep them mapped */
    Py_ssize_t rank, world_size, slot, spins;
    uint32_t *bell;
    uint8_t *asleep;
    uint64_t *stamps[2], *posts;
    uint8_t *slots[2];
} Seat;

/* What a card gives at a meeting and takes from it; see Exchange in exchange.py. */
typedef struct {
    int give, kind, into, root, longer;
    Py_ssize_t start, given, at, offset, nbytes, more;
} Exchange;

typedef struct {
    uint8_t *address;
    Py_ssize_t nbytes;     /* -1: a caller who gives an address answers for what lies there */
    uint8_t *const *parts; /* where its parts lie, of one length, one a card; NULL: it lies in one piece */
} Array;

/* Where a card's part lies, which begins at `start` if all lie in one piece. */
static inline uint8_t *part(const Array *array, Py_ssize_t rank, Py_ssize_t start) {
    return array->parts != NULL ? array->parts[rank] : array->address + start;
}

static inline uint64_t *seat_state(const Seat *seat) { return seat->state.buf; }

static inline int all_here(const Seat *seat, int half, uint64_t stamp) {
    for (Py_ssize_t r = 0; r < seat->world_size; r++)
        if (__atomic_load_n(&seat->stamps[half][r], __ATOMIC_ACQUIRE) != stamp) return 0;
    return 1;
}

static inline int somebody_sleeps(const Seat *seat) {
    for (Py_ssize_t r = 0; r < seat->world_size; r++)
        if (__atomic_load_n(&seat->asleep[r], __ATOMIC_RELAXED)) return 1;
    return 0;
}

/* Stamp; the last to come wakes those who sleep. Between the store and the loads there is a full fence. */
static inline int stamp_and_look(Seat *seat, int half, uint64_t stamp) {
    __atomic_store_n(&seat->stamps[half][seat->rank], stamp, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    int here = all_here(seat, half, stamp);
    if (here && somebody_sleeps(seat)) {
        __atomic_fetch_add(seat->bell, 1, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, seat->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
    return here;
}

static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Sleep until somebody rings, at most so long. Who is about to sleep says so, and looks once more. */
static inline void sleep_until_bell(const Seat *seat, int half, uint64_t stamp, double seconds) {
    uint32_t bell = __atomic_load_n(seat->bell, __ATOMIC_ACQUIRE);
    __atomic_store_n(&seat->asleep[seat->rank], 1, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!all_here(seat, half, stamp)) {
        struct timespec limit = {.tv_sec = (time_t)seconds, .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))};
        syscall(SYS_futex, seat->bell, FUTEX_WAIT, bell, &limit, NULL, 0);
    }
    __atomic_store_n(&seat->asleep[seat->rank], 0, __ATOMIC_RELEASE);
}

/* Whether all have come: looking only, if every card has a core; then giving way for `patience`; then asleep. */
static inline int watch(const Seat *seat, int half, uint64_t stamp, double patience, double seconds) {
    for (Py_ssize_t i = 0; i < seat->spins; i++) {
        if (all_here(seat, half, stamp)) return 1;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    double start = now(), at = start;
    do {
        for (int i = 0; i < LOOKS; i++) {
            if (all_here(seat, half, stamp)) return 1;
            sched_yield();
        }
        at = now();
    } while (at < start + patience);
    for (; at < start + seconds; at = now()) {
        sleep_until_bell(seat, half, stamp, start + seconds - at);
        if (all_here(seat, half, stamp)) return 1;
    }
    return 0;
}

#define FOLD(NAME, TYPE)                                                                             \
    static inline void NAME(const uint8_t *slots, Py_ssize_t slot, Py_ssize_t n, uint8_t *into, Py_ssize_t nbytes) { \
        Py_ssize_t count = nbytes / (Py_ssize_t)sizeof(TYPE);                                        \
        TYPE total[BLOCK];                                                                           \
        for (Py_ssize_t at = 0; at < count; at += BLOCK) {                                           \
            Py_ssize_t some = count - at < BLOCK ? count - at : BLOCK;                               \
            memcpy(total, slots + at * sizeof(TYPE), some * sizeof(TYPE));                           \
            for (Py_ssize_t r = 1; r < n; r++) {                                                     \
                const TYPE *row = (const TYPE *)(slots + r * slot) + at;                             \
                for (Py_ssize_t i = 0; i < some; i++) total[i] += row[i];                            \
            }                                                                                        \
            memcpy(into + at * sizeof(TYPE), total, some * sizeof(TYPE));                            \
        }                                                                                            \
    }

FOLD(fold_f, float)
FOLD(fold_d, double)
FOLD(fold_i, uint32_t) /* wraps around, as int32 does in numpy */
FOLD(fold_l, uint64_t)

#define KINDS "fdil"

/* Add up what lies at the same place in all slots. */
static inline void fold(const Seat *seat, const uint8_t *slots, int kind, uint8_t *into, Py_ssize_t nbytes) {
    switch (kind) {
    case 'f': fold_f(slots, seat->slot, seat->world_size, into, nbytes); break;
    case 'd': fold_d(slots, seat->slot, seat->world_size, into, nbytes); break;
    case 'i': fold_i(slots, seat->slot, seat->world_size, into, nbytes); break;
    case 'l': fold_l(slots, seat->slot, seat->world_size, into, nbytes); break;
    }
}

#if defined(__x86_64__)
#include <emmintrin.h>

/* Copy so much that no cache would hold it until it is read: past the caches, whose lines need not be read first. */
static inline void copy_past(uint8_t *into, const uint8_t *from, Py_ssize_t nbytes) {
    Py_ssize_t head = (16 - ((uintptr_t)into & 15)) & 15;
    if (nbytes < 256) {
        memcpy(into, from, nbytes);
        return;
    }
    memcpy(into, from, head);
    into += head, from += head, nbytes -= head;
    for (; nbytes >= 64; into += 64, from += 64, nbytes -= 64)
        for (int i = 0; i < 64; i += 16)
            _mm_stream_si128((__m128i *)(into + i), _mm_loadu_si128((const __m128i *)(from + i)));
    memcpy(into, from, nbytes);
    _mm_sfence();
}
#else
#define copy_past memcpy
#endif

/* Copy what is one of many copies, of `all` bytes together. */
static inline void copy(uint8_t *into, const uint8_t *from, Py_ssize_t nbytes, Py_ssize_t all) {
    if (all < FAR)
        memcpy(into, from, nbytes);
    else
        copy_past(into, from, nbytes);
}

/* The bytes that an exchange puts into its array. */
static inline Py_ssize_t taken(const Seat *seat, const Exchange *what) {
    if (what->kind || what->root >= 0) return what->nbytes;
    return what->nbytes * seat->world_size + what->longer * what->more;
}

/* All have come: take what is wanted, the sum of the slots, or what lies in that of `root`, or in all of them. */
static inline void take(const Seat *seat, const Exchange *what, const Array *arrays) {
    if (what->into < 0) return;
    const Array *array = &arrays[what->into];
    Py_ssize_t at = what->at;
    const uint8_t *slots = seat->slots[seat_state(seat)[SET] & 1] + what->offset;
    if (what->kind)
        fold(seat, slots, what->kind, array->address + at, what->nbytes);
    else if (what->root >= 0)
        memcpy(array->address + at, slots + what->root * seat->slot, what->nbytes);
    else
        for (Py_ssize_t r = 0; r < seat->world_size; r++) {
            Py_ssize_t some = what->nbytes + (r < what->longer ? what->more : 0);
            copy(part(array, r, at), slots + r * seat->slot, some, what->nbytes * seat->world_size * seat->world_size);
            at += some;
        }
}

/* The next meeting is for calls of this tag: its slots. */
static inline uint8_t *next_slots(Seat *seat, uint32_t tag) {
    uint64_t *state = seat_state(seat);
    state[SET] ^= 1;
    state[MEETINGS]++;
    state[STAMP] = (state[MEETINGS] & 0xFFFFFFFF) << 32 | tag;
    return seat->slots[state[SET] & 1];
}

static inline void give(const Seat *seat, const Exchange *what, const Array *array, uint8_t *slot) {
    Py_ssize_t n = seat->world_size, pieces = array->parts != NULL ? n : 1, some = what->given / pieces;
    for (Py_ssize_t r = 0; r < pieces; r++) copy(slot + r * some, part(array, r, what->start), some, what->given * n);
}

/* A whole meeting, but for the wait of one whose others are late: give, come, watch, and take if all have come. */
static inline int exchange(Seat *seat, uint32_t tag, const Exchange *what, const Array *arrays, double patience, double seconds) {
    uint8_t *room = next_slots(seat, tag);
    int half = seat_state(seat)[MEETINGS] & 1;
    uint64_t stamp = seat_state(seat)[STAMP];
    if (what->give >= 0) give(seat, what, &arrays[what->give], room + seat->rank * seat->slot);
    int here = stamp_and_look(seat, half, stamp);
    if (!here) {
        Py_BEGIN_ALLOW_THREADS
        here = watch(seat, half, stamp, patience, seconds);
        Py_END_ALLOW_THREADS
    }
    if (here) take(seat, what, arrays);
    return here;
}

static inline int whole(PyObject *value, int least, int most, int *result) {
    long number = PyLong_AsLong(value);
    if (number == -1 && PyErr_Occurred()) return -1;
    if (number < least || number > most) {
        PyErr_Format(PyExc_ValueError, "%ld must be %d to %d", number, least, most);
        return -1;
    }
    *result = (int)number;
    return 0;
}

static inline int size_of(PyObject *value, Py_ssize_t most, Py_ssize_t *result) {
    *result = PyLong_AsSsize_t(value);
    if (*result == -1 && PyErr_Occurred()) return -1;
    if (*result >= 0 && *result <= most) return 0;
    PyErr_Format(PyExc_ValueError, "%zd bytes must be 0 to %zd", *result, most);
    return -1;
}

/* Read an Exchange of exchange.py, whose arrays are `count`. */
static inline int read_exchange(const Seat *seat, PyObject *given, Py_ssize_t count, Exchange *what) {
    PyObject *field[11];
    int n = (int)seat->world_size, most = (int)count - 1;
    if (!PyTuple_Check(given) || PyTuple_Size(given) != 11) {
        PyErr_SetString(PyExc_TypeError, "an exchange is a tuple of 11 numbers");
        return -1;
    }
    for (int i = 0; i < 11; i++) field[i] = PyTuple_GetItem(given, i);
    if (whole(field[0], -1, most, &what->give) || size_of(field[1], ANYWHERE, &what->start)) return -1;
    if (size_of(field[2], seat->slot, &what->given) || whole(field[3], 0, 127, &what->kind)) return -1;
    if (what->kind && strchr(KINDS, what->kind) == NULL) {
        PyErr_Format(PyExc_ValueError, "kind %d must be 0 or one of the letters " KINDS, what->kind);
        return -1;
    }
    if (whole(field[4], -1, most, &what->into) || size_of(field[5], ANYWHERE, &what->at)) return -1;
    if (size_of(field[6], seat->slot, &what->offset) || size_of(field[7], seat->slot - what->offset, &what->nbytes)) return -1;
    if (whole(field[8], -1, n - 1, &what->root) || whole(field[9], 0, n - 1, &what->longer)) return -1;
    return size_of(field[10], seat->slot - what->offset - what->nbytes, &what->more);
}

/* An array is given as its address, or as an object with a contiguous buffer, which its owner keeps alive. */
static inline int read_array(PyObject *given, int writable, Array *array) {
    array->parts = NULL;
    if (PyLong_Check(given)) {
        array->address = PyLong_AsVoidPtr(given), array->nbytes = -1;
        return PyErr_Occurred() ? -1 : 0;
    }
    Py_buffer buffer;
    if (PyObject_GetBuffer(given, &buffer, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE)) return -1;
    array->address = buffer.buf, array->nbytes = buffer.len;
    PyBuffer_Release(&buffer);
    return 0;
}

/* Whether an array has so many bytes; none, number -1, is not asked for any. */
static inline int has(const Array *arrays, int number, Py_ssize_t wanted) {
    if (number < 0 || arrays[number].nbytes < 0 || wanted <= arrays[number].nbytes) return 1;
    PyErr_Format(PyExc_ValueError, "the array has %zd bytes, fewer than %zd", arrays[number].nbytes, wanted);
    return 0;
}

/* Whether an exchange stays within its arrays; or an error is set. */
static inline int fits(const Seat *seat, const Exchange *what, const Array *arrays) {
    return has(arrays, what->give, what->start + what->given) && has(arrays, what->into, what->at + taken(seat, what));
}

#endif

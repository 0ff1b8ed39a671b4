/* A relay at a board in C: see ../collectives/relay.py, whose function of this name does the same in Python. */
#ifndef SUPERPOD_RELAY_H
#define SUPERPOD_RELAY_H

#include "_board.h"

enum { COUNT, BELL = 8, WANTED = 9, POST = 16 }; /* of a card's post, in words: how far it is; what it sleeps for */
#define WINDOWS 4

/* What a card does in a relay; see Relay in exchange.py. Bytes, but for `window`. */
typedef struct {
    int kind, array, into;
    Py_ssize_t itemsize, size, first, last, piece, window;
} Relay;

/* Wait in Python for a card that is late; 0, or -1 with an error set. */
typedef int (*Late)(void *context, Py_ssize_t rank, uint64_t count);

static inline int reached(const Seat *seat, Py_ssize_t rank, uint64_t count) {
    uint64_t *stamps = seat->stamps[seat_state(seat)[MEETINGS] & 1];
    return __atomic_load_n(&seat->posts[rank * POST + COUNT], __ATOMIC_ACQUIRE) >= count &&
           __atomic_load_n(&stamps[rank], __ATOMIC_ACQUIRE) == stamps[seat->rank];
}

/* This card is so far. It wakes the next one, the last card all. */
static inline void tell(const Seat *seat, uint64_t count) {
    Py_ssize_t last = seat->world_size - 1, from = seat->rank == last ? 0 : seat->rank + 1, to = seat->rank == last ? last : from + 1;
    __atomic_store_n(&seat->posts[seat->rank * POST + COUNT], count, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    for (Py_ssize_t r = from; r < to; r++) {
        uint64_t *post = seat->posts + r * POST;
        if (__atomic_load_n(&post[BELL], __ATOMIC_ACQUIRE) && __atomic_load_n(&post[WANTED], __ATOMIC_ACQUIRE) <= count) {
            __atomic_store_n(&post[BELL], 0, __ATOMIC_RELEASE);
            syscall(SYS_futex, &post[BELL], FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        }
    }
}

static inline void sleep_for(const Seat *seat, Py_ssize_t rank, uint64_t count, double seconds) {
    uint64_t *post = seat->posts + seat->rank * POST;
    __atomic_store_n(&post[WANTED], count, __ATOMIC_RELEASE);
    __atomic_store_n(&post[BELL], 1, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!reached(seat, rank, count)) {
        struct timespec limit = {.tv_sec = (time_t)seconds, .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))};
        syscall(SYS_futex, &post[BELL], FUTEX_WAIT, 1, &limit, NULL, 0);
    }
    __atomic_store_n(&post[BELL], 0, __ATOMIC_RELEASE);
}

/* As `watch`, for one card's progress. */
static inline int watch_for(const Seat *seat, Py_ssize_t rank, uint64_t count, double patience, double seconds) {
    if (reached(seat, rank, count)) return 1;
    double start = now(), at = start;
    for (; at < start + patience; at = now())
        for (int i = 0; i < LOOKS; i++) {
            sched_yield();
            if (reached(seat, rank, count)) return 1;
        }
    for (; at < start + seconds; at = now()) {
        sleep_for(seat, rank, count, start + seconds - at);
        if (reached(seat, rank, count)) return 1;
    }
    return 0;
}

#define ADD(NAME, TYPE)                                                                  \
    static inline void NAME(uint8_t *total, const uint8_t *part, Py_ssize_t nbytes) {    \
        TYPE *restrict into = (TYPE *)total;                                             \
        const TYPE *restrict more = (const TYPE *)part;                                  \
        for (Py_ssize_t i = 0; i < nbytes / (Py_ssize_t)sizeof(TYPE); i++) into[i] += more[i]; \
    }

ADD(add_f, float)
ADD(add_d, double)
ADD(add_i, uint32_t)
ADD(add_l, uint64_t)

static inline void add(int kind, uint8_t *total, const uint8_t *part, Py_ssize_t nbytes) {
    switch (kind) {
    case 'f': add_f(total, part, nbytes); break;
    case 'd': add_d(total, part, nbytes); break;
    case 'i': add_i(total, part, nbytes); break;
    case 'l': add_l(total, part, nbytes); break;
    }
}

/* A whole relay; the GIL is held where it is called, and let go meanwhile. 0, or -1 if `late` has returned that. */
static inline int relay(Seat *seat, uint32_t tag, const Relay *what, const Array *arrays, double patience, double seconds,
                        Late late, void *context) {
    Py_ssize_t own = seat->rank, end = seat->world_size - 1, piece = what->piece, width = piece * what->window;
    Py_ssize_t count = what->size > piece ? (what->size + piece - 1) / piece : 1, windows = (count + what->window - 1) / what->window;
    Py_ssize_t lapse = (what->size < width ? what->size : width) * seat->world_size; /* bytes between adding and taking */
    const uint8_t *array = arrays[what->array].address;
    uint8_t *into = arrays[what->into].address, *room = next_slots(seat, tag);
    uint64_t past = seat_state(seat)[TOLD];
    seat_state(seat)[TOLD] += count;
    stamp_and_look(seat, seat_state(seat)[MEETINGS] & 1, seat_state(seat)[STAMP]);
    PyThreadState *released = PyEval_SaveThread();
#define WAIT_FOR(RANK, PIECES)                                                  \
    if (!watch_for(seat, RANK, past + (PIECES), patience, seconds)) {           \
        PyEval_RestoreThread(released);                                         \
        if (late(context, RANK, past + (PIECES))) return -1;                    \
        released = PyEval_SaveThread();                                         \
    }
    for (Py_ssize_t w = 0; w <= windows; w++) {
        Py_ssize_t low = (w - 1) * width, high = w * width;
        for (Py_ssize_t i = w * what->window; i < (w + 1) * what->window && i < count; i++) {
            Py_ssize_t start = i * piece, some = what->size - start < piece ? what->size - start : piece;
            uint8_t *total = room + i % (WINDOWS * what->window) * piece;
            if (own == 0)
                memcpy(total, array + start, some);
            else {
                WAIT_FOR(own - 1, i + 1)
                add(what->kind, total, array + start, some);
            }
            tell(seat, past + i + 1);
        }
        if (w == 0) continue;
        if (low < what->first) low = what->first;
        if (high > what->last) high = what->last;
        if (low < high || own == 0 || w == windows) {
            WAIT_FOR(end, w * what->window < count ? w * what->window : count)
        }
        if (low < high) copy(into + low - what->first, room + (w - 1) % WINDOWS * width + low - (w - 1) * width, high - low, lapse);
    }
#undef WAIT_FOR
    PyEval_RestoreThread(released);
    return 0;
}

/* Whether what it fills is the array that is added itself, or lies apart from it. */
static inline int relay_lies_apart(const Relay *what, const Array *arrays) {
    const uint8_t *added = arrays[what->array].address, *filled = arrays[what->into].address;
    return what->array == what->into || filled >= added + what->size || added >= filled + what->last - what->first;
}

/* Read a Relay of exchange.py, whose arrays are `count`. */
static inline int read_relay(const Seat *seat, PyObject *given, Py_ssize_t count, Relay *what) {
    PyObject *field[9];
    int most = (int)count - 1, window;
    for (int i = 0; i < 9; i++) field[i] = PyTuple_GetItem(given, i);
    Py_ssize_t room = seat->slot * seat->world_size;
    if (whole(field[0], 1, 127, &what->kind) || whole(field[1], 0, most, &what->array) || whole(field[2], 0, most, &what->into)) return -1;
    if (size_of(field[3], 16, &what->itemsize) || size_of(field[4], ANYWHERE, &what->size)) return -1;
    if (size_of(field[6], what->size, &what->last) || size_of(field[5], what->last, &what->first)) return -1;
    if (size_of(field[7], room, &what->piece) || whole(field[8], 1, 1 << 20, &window)) return -1;
    what->window = window;
    if (strchr(KINDS, what->kind) && what->itemsize && what->piece && WINDOWS * window * what->piece <= room) return 0;
    PyErr_SetString(PyExc_ValueError, "the relay is of no kind that can be added up, or does not fit into the board");
    return -1;
}

/* Whether a relay stays within its arrays; or an error is set. */
static inline int relay_fits(const Relay *what, const Array *arrays) {
    return has(arrays, what->array, what->size) && has(arrays, what->into, what->last - what->first);
}

#endif

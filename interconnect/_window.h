/* Windows in C: reading what lies in other cards' memory, as ../collectives/window.py and peer_memory.py do in Python. */
#ifndef SUPERPOD_WINDOW_H
#define SUPERPOD_WINDOW_H

#include "_board.h"

#include <errno.h>
#include <sys/uio.h>

#define READING 8 /* numbers */

/* What a card shows and reads; see Reading in exchange.py. */
typedef struct {
    int show, into, root;
    Py_ssize_t shown, start, step, stride, nbytes;
} Reading;

/* What a card tells another: where what that one may read lies. */
typedef struct {
    uint64_t process, address;
} Told;

static inline uint8_t *shown_to(const Reading *what, const Array *arrays, Py_ssize_t rank) {
    return what->show < 0 ? NULL : part(&arrays[what->show], rank, what->start + rank * what->step);
}

static inline uint8_t *filled_from(const Reading *what, const Array *arrays, Py_ssize_t rank) {
    return part(&arrays[what->into], rank, rank * what->stride);
}

/* Read from another process; 0, or why not. */
static inline int read_from(const Told *told, uint8_t *into, Py_ssize_t nbytes) {
    for (Py_ssize_t done = 0; done < nbytes;) {
        struct iovec here = {into + done, nbytes - done}, there = {(void *)(uintptr_t)(told->address + done), nbytes - done};
        ssize_t count = process_vm_readv((pid_t)told->process, &here, 1, &there, 1, 0);
        if (count <= 0) return count < 0 ? errno : EFAULT;
        done += count;
    }
    return 0;
}

/* What is told to every card. */
static inline void tell_all(const Seat *seat, const Reading *what, const Array *arrays, Told *table) {
    for (Py_ssize_t r = 0; r < seat->world_size; r++)
        table[r].process = (uint64_t)getpid(), table[r].address = (uintptr_t)shown_to(what, arrays, r);
}

/* Fill this card's array, from the next card's on, so that not all read from one. 0, or why not, and from `whom`. */
static inline int read_all(const Seat *seat, const Reading *what, const Told *told, const Array *arrays, Py_ssize_t *whom) {
    Py_ssize_t n = seat->world_size, parts = what->root < 0 ? n : 1, first = what->root < 0 ? seat->rank : what->root;
    for (Py_ssize_t k = 0; k < parts; k++) {
        Py_ssize_t r = *whom = (first + k) % n;
        uint8_t *into = filled_from(what, arrays, r), *own = shown_to(what, arrays, r);
        int error = r == seat->rank ? 0 : read_from(&told[r], into, what->nbytes);
        if (error) return error;
        if (r == seat->rank && own != into) copy(into, own, what->nbytes, what->nbytes * n * parts);
    }
    return 0;
}

static inline int overlap(const uint8_t *one, const uint8_t *other, Py_ssize_t nbytes) {
    return one < other + nbytes && other < one + nbytes;
}

/* Whether nothing is filled twice. */
static inline int fills_once(const Seat *seat, const Reading *what, const Array *arrays) {
    if (arrays[what->into].parts == NULL) return 1;
    for (Py_ssize_t r = 1; r < seat->world_size; r++)
        for (Py_ssize_t q = 0; q < r; q++)
            if (overlap(filled_from(what, arrays, r), filled_from(what, arrays, q), what->nbytes)) return 0;
    return 1;
}

/* Whether that is so, and nothing of what it fills is shown, but for its own part at its own place. */
static inline int lies_apart(const Seat *seat, const Reading *what, const Array *arrays) {
    Py_ssize_t n = seat->world_size, from = what->root < 0 ? 0 : what->root, to = what->root < 0 ? n : from + 1;
    if (!fills_once(seat, what, arrays)) return 0;
    if (what->show < 0) return 1;
    for (Py_ssize_t r = from; r < to; r++)
        for (Py_ssize_t q = 0; q < n; q++) {
            const uint8_t *filled = filled_from(what, arrays, r), *shown = shown_to(what, arrays, q);
            int itself = filled == shown && r == seat->rank && (q == r || shown == shown_to(what, arrays, r));
            if (!itself && overlap(filled, shown, what->nbytes)) return 0;
        }
    return 1;
}

/* Read a Reading of exchange.py, whose arrays are `count`. */
static inline int read_reading(const Seat *seat, PyObject *given, Py_ssize_t count, Reading *what) {
    PyObject *field[READING];
    int n = (int)seat->world_size, most = (int)count - 1;
    for (int i = 0; i < READING; i++) field[i] = PyTuple_GetItem(given, i);
    if (whole(field[0], -1, most, &what->show) || size_of(field[1], ANYWHERE, &what->shown)) return -1;
    if (size_of(field[2], ANYWHERE, &what->start) || size_of(field[3], ANYWHERE / n, &what->step)) return -1;
    if (whole(field[4], 0, most, &what->into) || whole(field[5], -1, n - 1, &what->root)) return -1;
    if (size_of(field[6], ANYWHERE / n, &what->stride) || size_of(field[7], ANYWHERE, &what->nbytes)) return -1;
    if (n * (Py_ssize_t)sizeof(Told) > seat->slot) {
        PyErr_Format(PyExc_ValueError, "%d cards are more than a slot has words for", n);
        return -1;
    }
    int itself = what->root < 0 || what->root == seat->rank; /* its own part is one of those that are filled */
    if (what->show < 0 ? !itself : what->start + (n - 1) * what->step + what->nbytes <= what->shown) return 0;
    PyErr_SetString(PyExc_ValueError, "what a card shows to all must lie within what it shows");
    return -1;
}

/* Whether a reading stays within its arrays; or an error is set. */
static inline int reading_fits(const Seat *seat, const Reading *what, const Array *arrays) {
    Py_ssize_t last = what->root < 0 ? seat->world_size - 1 : what->root;
    return has(arrays, what->show, what->shown) && has(arrays, what->into, last * what->stride + what->nbytes);
}

#endif

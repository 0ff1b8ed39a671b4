/* Windows in C: reading what lies in other cards' memory, as ../collectives/window.py and peer_memory.py do in Python. */
#ifndef SUPERPOD_WINDOW_H
#define SUPERPOD_WINDOW_H

#include "_board.h"

#include <errno.h>
#include <sys/uio.h>

#define READING 8 /* numbers */

/* What a card reads; see Reading in exchange.py. */
typedef struct {
    int show, into, root;
    Py_ssize_t shown, offset, apart, stride, nbytes;
} Reading;

/* What a card tells the others of its array. */
typedef struct {
    uint64_t process, address;
} Told;

/* Read from another process; 0, or why not. */
static inline int read_from(const Told *told, Py_ssize_t offset, uint8_t *into, Py_ssize_t nbytes) {
    for (Py_ssize_t done = 0; done < nbytes;) {
        struct iovec here = {into + done, nbytes - done}, there = {(void *)(uintptr_t)(told->address + offset + done), nbytes - done};
        ssize_t count = process_vm_readv((pid_t)told->process, &here, 1, &there, 1, 0);
        if (count <= 0) return count < 0 ? errno : EFAULT;
        done += count;
    }
    return 0;
}

/* Fill this card's array, from the next card's on, so that not all read from one. 0, or why not, and from `whom`. */
static inline int read_all(const Seat *seat, const Reading *what, const Told *told, const Array *arrays, Py_ssize_t *whom) {
    Py_ssize_t n = seat->world_size, parts = what->root < 0 ? n : 1, first = what->root < 0 ? seat->rank : what->root;
    for (Py_ssize_t k = 0; k < parts; k++) {
        Py_ssize_t r = (first + k) % n, offset = what->offset + r * what->apart;
        uint8_t *into = arrays[what->into].address + r * what->stride;
        if (r != seat->rank) {
            int error = read_from(&told[r], offset, into, what->nbytes);
            *whom = r;
            if (error) return error;
        } else if (arrays[what->show].address + offset != into)
            copy(into, arrays[what->show].address + offset, what->nbytes, what->nbytes * n * parts);
    }
    return 0;
}

/* Read a Reading of exchange.py, whose arrays are `count`. */
static inline int read_reading(const Seat *seat, PyObject *given, Py_ssize_t count, Reading *what) {
    PyObject *field[READING];
    int n = (int)seat->world_size, most = (int)count - 1;
    for (int i = 0; i < READING; i++) field[i] = PyTuple_GetItem(given, i);
    if (whole(field[0], -1, most, &what->show) || size_of(field[1], ANYWHERE, &what->shown)) return -1;
    if (whole(field[2], 0, most, &what->into) || whole(field[3], -1, n - 1, &what->root)) return -1;
    if (size_of(field[4], ANYWHERE, &what->offset) || size_of(field[5], ANYWHERE / n, &what->apart)) return -1;
    if (size_of(field[6], ANYWHERE / n, &what->stride) || size_of(field[7], ANYWHERE, &what->nbytes)) return -1;
    int itself = what->root < 0 || what->root == seat->rank; /* its own part is one of those that are put */
    if (!itself || (what->show >= 0 && what->offset + seat->rank * what->apart + what->nbytes <= what->shown)) return 0;
    PyErr_SetString(PyExc_ValueError, "a card's own part must lie within what it shows");
    return -1;
}

/* Whether a reading stays within its arrays; or an error is set. */
static inline int reading_fits(const Seat *seat, const Reading *what, const Array *arrays) {
    Py_ssize_t last = what->root < 0 ? seat->world_size - 1 : what->root;
    return has(arrays, what->show, what->shown) && has(arrays, what->into, last * what->stride + what->nbytes);
}

#endif

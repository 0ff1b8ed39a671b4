/* The compiled half of board.py: a seat at a board, for those who come often. It does what Board's methods of the same
 * names do in Python, on the same memory, so cards with and without it meet at one board.
 *
 * It is built where there is a C compiler, and left out where there is none. Only CPython's stable interface is used.
 */
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
#define BLOCK 512   /* elements that are added up at a time: their total stays in the first-level cache */

typedef struct {
    PyObject_HEAD
    Py_buffer memory; /* keeps it mapped */
    Py_ssize_t rank, world_size, slot, spins;
    uint32_t *bell;
    uint8_t *asleep;
    uint64_t *stamps[2];
    uint8_t *slots[2];
} Seat;

static int all_here(const Seat *seat, int half, uint64_t stamp) {
    for (Py_ssize_t r = 0; r < seat->world_size; r++)
        if (__atomic_load_n(&seat->stamps[half][r], __ATOMIC_ACQUIRE) != stamp) return 0;
    return 1;
}

static int somebody_sleeps(const Seat *seat) {
    for (Py_ssize_t r = 0; r < seat->world_size; r++)
        if (__atomic_load_n(&seat->asleep[r], __ATOMIC_RELAXED)) return 1;
    return 0;
}

/* Stamp; the last to come wakes those who sleep. Between the store and the loads there is a full fence. */
static int stamp_and_look(Seat *seat, int half, uint64_t stamp) {
    __atomic_store_n(&seat->stamps[half][seat->rank], stamp, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    int here = all_here(seat, half, stamp);
    if (here && somebody_sleeps(seat)) {
        __atomic_fetch_add(seat->bell, 1, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, seat->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
    return here;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Sleep until somebody rings, at most so long. Who is about to sleep says so, and looks once more. */
static void sleep_until_bell(const Seat *seat, int half, uint64_t stamp, double seconds) {
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
static int watch(const Seat *seat, int half, uint64_t stamp, double patience, double seconds) {
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
    static void NAME(const uint8_t *slots, Py_ssize_t slot, Py_ssize_t n, uint8_t *into, Py_ssize_t nbytes) { \
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

/* Add up what lies at `offset` in all slots. */
static int fold(const Seat *seat, int set, int kind, uint8_t *into, Py_ssize_t offset, Py_ssize_t nbytes) {
    const uint8_t *slots = seat->slots[set] + offset;
    switch (kind) {
    case 'f': fold_f(slots, seat->slot, seat->world_size, into, nbytes); return 0;
    case 'd': fold_d(slots, seat->slot, seat->world_size, into, nbytes); return 0;
    case 'i': fold_i(slots, seat->slot, seat->world_size, into, nbytes); return 0;
    case 'l': fold_l(slots, seat->slot, seat->world_size, into, nbytes); return 0;
    }
    PyErr_Format(PyExc_ValueError, "kind %d must be 0 or one of f, d, i, l", kind);
    return -1;
}

static int whole(PyObject *value, int least, int most, int *result) {
    long number = PyLong_AsLong(value);
    if (number == -1 && PyErr_Occurred()) return -1;
    if (number < least || number > most) {
        PyErr_Format(PyExc_ValueError, "%ld must be %d to %d", number, least, most);
        return -1;
    }
    *result = (int)number;
    return 0;
}

static int expect(const char *what, Py_ssize_t given, Py_ssize_t wanted) {
    if (given == wanted) return 0;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", what, wanted, given);
    return -1;
}

/* come(half, stamp) -> bool: say that this card has written its slot; whether all have come. */
static PyObject *seat_come(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    int half;
    if (expect("come", nargs, 2) || whole(args[0], 0, 1, &half)) return NULL;
    uint64_t stamp = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred()) return NULL;
    return PyBool_FromLong(stamp_and_look((Seat *)self, half, stamp));
}

/* watch(half, stamp, patience, seconds) -> bool: whether all have come within `seconds`. */
static PyObject *seat_watch(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    Seat *seat = (Seat *)self;
    int half, here;
    if (expect("watch", nargs, 4) || whole(args[0], 0, 1, &half)) return NULL;
    uint64_t stamp = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred()) return NULL;
    double patience = PyFloat_AsDouble(args[2]), seconds = PyFloat_AsDouble(args[3]);
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS
    here = watch(seat, half, stamp, patience, seconds);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(here);
}

/* What a card takes from the slots when all have come: the sum of them, or what lies in the slot of `root`, or, with
 * root = -1, in all slots, one after the other; of each `nbytes` from `offset` on, and `more` of the first `longer`. */
typedef struct {
    int set, kind, root, longer;
    uint8_t *into; /* or NULL: nothing */
    Py_ssize_t offset, nbytes, more;
} Taking;

static int take(const Seat *seat, const Taking *what) {
    if (what->into == NULL) return 0;
    if (what->kind) return fold(seat, what->set, what->kind, what->into, what->offset, what->nbytes);
    const uint8_t *slots = seat->slots[what->set] + what->offset;
    if (what->root >= 0)
        memcpy(what->into, slots + what->root * seat->slot, what->nbytes);
    else {
        uint8_t *into = what->into;
        for (Py_ssize_t r = 0; r < seat->world_size; r++) {
            Py_ssize_t some = what->nbytes + (r < what->longer ? what->more : 0);
            memcpy(into, slots + r * seat->slot, some);
            into += some;
        }
    }
    return 0;
}

/* The array that a call is given as its address, or as an object with a contiguous buffer, or NULL for None. */
static int array_at(PyObject *given, Py_ssize_t nbytes, int flags, uint8_t **address) {
    *address = NULL;
    if (given == Py_None) return 0;
    if (PyLong_Check(given)) {
        *address = PyLong_AsVoidPtr(given);
        return PyErr_Occurred() ? -1 : 0;
    }
    Py_buffer buffer;
    if (PyObject_GetBuffer(given, &buffer, flags)) return -1;
    *address = buffer.buf;
    Py_ssize_t there = buffer.len;
    PyBuffer_Release(&buffer); /* the caller keeps it alive */
    if (there == nbytes) return 0;
    PyErr_Format(PyExc_ValueError, "the array has %zd bytes, not %zd", there, nbytes);
    return -1;
}

static int size_of(PyObject *value, Py_ssize_t most, Py_ssize_t *result) {
    *result = PyLong_AsSsize_t(value);
    if (*result == -1 && PyErr_Occurred()) return -1;
    if (*result >= 0 && *result <= most) return 0;
    PyErr_Format(PyExc_ValueError, "%zd bytes must be 0 to %zd, what a slot holds", *result, most);
    return -1;
}

/* The last arguments of a call: kind, into, offset, nbytes, root, longer, more. */
static int taking(const Seat *seat, PyObject *const *args, Taking *what) {
    if (whole(args[0], 0, 127, &what->kind) || whole(args[4], -1, (int)seat->world_size - 1, &what->root)) return -1;
    if (size_of(args[2], seat->slot, &what->offset) || size_of(args[3], seat->slot - what->offset, &what->nbytes)) return -1;
    if (whole(args[5], 0, (int)seat->world_size - 1, &what->longer)) return -1;
    if (size_of(args[6], seat->slot - what->offset - what->nbytes, &what->more)) return -1;
    Py_ssize_t all = what->kind || what->root >= 0 ? what->nbytes : what->nbytes * seat->world_size + what->longer * what->more;
    return array_at(args[1], all, PyBUF_WRITABLE, &what->into);
}

/* meet(set, half, stamp, patience, seconds, give, given, kind, into, offset, nbytes, root, longer, more) -> bool: the first
 * `given` bytes of this card's slot are those of `give`; come, watch, take. False: not all have come in time, nothing is taken. */
static PyObject *seat_meet(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    Seat *seat = (Seat *)self;
    Taking what;
    Py_ssize_t given;
    uint8_t *give;
    int half, here;
    if (expect("meet", nargs, 14) || whole(args[0], 0, 1, &what.set) || whole(args[1], 0, 1, &half)) return NULL;
    uint64_t stamp = PyLong_AsUnsignedLongLong(args[2]);
    if (PyErr_Occurred()) return NULL;
    double patience = PyFloat_AsDouble(args[3]), seconds = PyFloat_AsDouble(args[4]);
    if (PyErr_Occurred()) return NULL;
    if (size_of(args[6], seat->slot, &given) || array_at(args[5], given, PyBUF_SIMPLE, &give)) return NULL;
    if (taking(seat, args + 7, &what)) return NULL;
    if (give != NULL) memcpy(seat->slots[what.set] + seat->rank * seat->slot, give, given);
    here = stamp_and_look(seat, half, stamp);
    if (!here) {
        Py_BEGIN_ALLOW_THREADS
        here = watch(seat, half, stamp, patience, seconds);
        Py_END_ALLOW_THREADS
    }
    if (here && take(seat, &what)) return NULL;
    return PyBool_FromLong(here);
}

/* take(set, kind, into, offset, nbytes, root, longer, more): what `meet` has not taken, now that all have come. */
static PyObject *seat_take(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    Taking what;
    if (expect("take", nargs, 8) || whole(args[0], 0, 1, &what.set) || taking((Seat *)self, args + 1, &what)) return NULL;
    if (take((Seat *)self, &what)) return NULL;
    Py_RETURN_NONE;
}

/* Seat(memory, rank, world_size, slot, asleep, stamps_0, stamps_1, slots_0, slots_1, spins): offsets in bytes. */
static PyObject *seat_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static char *names[] = {"memory", "rank", "world_size", "slot", "asleep", "stamps_0", "stamps_1", "slots_0", "slots_1", "spins", NULL};
    PyObject *memory;
    Py_ssize_t rank, n, slot, asleep, stamps[2], slots[2], spins;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "Onnnnnnnnn", names, &memory, &rank, &n, &slot, &asleep,
                                     &stamps[0], &stamps[1], &slots[0], &slots[1], &spins))
        return NULL;
    Seat *seat = (Seat *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (seat == NULL) return NULL;
    if (PyObject_GetBuffer(memory, &seat->memory, PyBUF_SIMPLE | PyBUF_WRITABLE)) {
        Py_DECREF(seat);
        return NULL;
    }
    uint8_t *base = seat->memory.buf;
    seat->rank = rank, seat->world_size = n, seat->slot = slot, seat->spins = spins;
    seat->bell = (uint32_t *)base;
    seat->asleep = base + asleep;
    for (int i = 0; i < 2; i++) {
        seat->stamps[i] = (uint64_t *)(base + stamps[i]);
        seat->slots[i] = base + slots[i];
        if (stamps[i] < 0 || slots[i] < 0 || stamps[i] + 8 * n > seat->memory.len || slots[i] + n * slot > seat->memory.len) {
            PyErr_SetString(PyExc_ValueError, "the board does not lie within its memory");
            Py_DECREF(seat);
            return NULL;
        }
    }
    return (PyObject *)seat;
}

static void seat_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyBuffer_Release(&((Seat *)self)->memory);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"come", (PyCFunction)(void (*)(void))seat_come, METH_FASTCALL, NULL},
    {"watch", (PyCFunction)(void (*)(void))seat_watch, METH_FASTCALL, NULL},
    {"meet", (PyCFunction)(void (*)(void))seat_meet, METH_FASTCALL, NULL},
    {"take", (PyCFunction)(void (*)(void))seat_take, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, seat_new}, {Py_tp_dealloc, seat_dealloc}, {Py_tp_methods, methods}, {0, NULL},
};
static PyType_Spec spec = {"superpod.interconnect._board.Seat", sizeof(Seat), 0, Py_TPFLAGS_DEFAULT, slots};

static int fill(PyObject *module) {
    PyObject *type = PyType_FromSpec(&spec);
    int failed = type == NULL || PyModule_AddObjectRef(module, "Seat", type);
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill}, {0, NULL}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_board", NULL, 0, NULL, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__board(void) { return PyModuleDef_Init(&module); }

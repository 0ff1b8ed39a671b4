/* The compiled half of board.py: a seat at a board, for those who come often. It does what Board's methods of the same
 * names do in Python, on the same memory, so cards with and without it meet at one board.
 *
 * It is built where there is a C compiler, and left out where there is none. Only CPython's stable interface is used.
 */
#include "_relay.h"

#define MOST 3 /* arrays of a call */

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

/* What a call is given: an exchange and its arrays. */
static int read_call(const Seat *seat, PyObject *exchange, PyObject *given, Exchange *what, Array *arrays) {
    Py_ssize_t count = PyTuple_Size(given);
    if (count < 0) return -1;
    if (count > MOST) {
        PyErr_Format(PyExc_ValueError, "%zd arrays must be %d at the most", count, MOST);
        return -1;
    }
    if (read_exchange(seat, exchange, count, what)) return -1;
    for (int i = 0; i < count; i++)
        if (read_array(PyTuple_GetItem(given, i), i == what->into, &arrays[i])) return -1;
    return fits(seat, what, arrays) ? 0 : -1;
}

/* meet(tag, exchange, arrays, patience, seconds) -> bool: a whole meeting. False: not all have come in time, nothing is
 * taken. */
static PyObject *seat_meet(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    Exchange what;
    Array arrays[MOST];
    if (expect("meet", nargs, 5)) return NULL;
    unsigned long tag = PyLong_AsUnsignedLong(args[0]);
    double patience = PyFloat_AsDouble(args[3]), seconds = PyFloat_AsDouble(args[4]);
    if (PyErr_Occurred() || read_call((Seat *)self, args[1], args[2], &what, arrays)) return NULL;
    return PyBool_FromLong(exchange((Seat *)self, (uint32_t)tag, &what, arrays, patience, seconds));
}

/* take(exchange, arrays): what `meet` has not taken, now that all have come. */
static PyObject *seat_take(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    Exchange what;
    Array arrays[MOST];
    if (expect("take", nargs, 2) || read_call((Seat *)self, args[0], args[1], &what, arrays)) return NULL;
    take((Seat *)self, &what, arrays);
    Py_RETURN_NONE;
}

static int late_for(void *callback, Py_ssize_t rank, uint64_t count) {
    PyObject *result = PyObject_CallFunction(callback, "nK", rank, (unsigned long long)count);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* relay(tag, relay, arrays, patience, seconds, late): a whole relay; late(rank, count) waits in Python. */
static PyObject *seat_relay(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    Seat *seat = (Seat *)self;
    Relay what;
    Array arrays[MOST];
    if (expect("relay", nargs, 6)) return NULL;
    unsigned long tag = PyLong_AsUnsignedLong(args[0]);
    double patience = PyFloat_AsDouble(args[3]), seconds = PyFloat_AsDouble(args[4]);
    Py_ssize_t count = PyErr_Occurred() ? -1 : PyTuple_Size(args[2]);
    if (count < 0 || PyTuple_Size(args[1]) != 9 || count > MOST) {
        if (!PyErr_Occurred()) PyErr_Format(PyExc_TypeError, "a relay is a tuple of 9 numbers, for up to %d arrays", MOST);
        return NULL;
    }
    if (read_relay(seat, args[1], count, &what)) return NULL;
    for (int i = 0; i < count; i++)
        if (read_array(PyTuple_GetItem(args[2], i), i == what.into, &arrays[i])) return NULL;
    if (!relay_fits(&what, arrays) || relay(seat, (uint32_t)tag, &what, arrays, patience, seconds, late_for, args[5])) return NULL;
    Py_RETURN_NONE;
}

/* Seat(memory, state, rank, world_size, slot, asleep, stamps_0, stamps_1, posts, slots_0, slots_1, spins): offsets in
 * bytes. */
static PyObject *seat_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static char *names[] = {"memory", "state", "rank", "world_size", "slot", "asleep", "stamps_0", "stamps_1", "posts",
                            "slots_0", "slots_1", "spins", NULL};
    PyObject *memory, *state;
    Py_ssize_t rank, n, slot, asleep, stamps[2], posts, slots[2], spins;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOnnnnnnnnnn", names, &memory, &state, &rank, &n, &slot, &asleep,
                                     &stamps[0], &stamps[1], &posts, &slots[0], &slots[1], &spins))
        return NULL;
    Seat *seat = (Seat *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (seat == NULL) return NULL;
    if (PyObject_GetBuffer(memory, &seat->memory, PyBUF_WRITABLE) || PyObject_GetBuffer(state, &seat->state, PyBUF_WRITABLE)) {
        Py_DECREF(seat);
        return NULL;
    }
    uint8_t *base = seat->memory.buf;
    seat->rank = rank, seat->world_size = n, seat->slot = slot, seat->spins = spins;
    seat->bell = (uint32_t *)base;
    seat->asleep = base + asleep;
    seat->posts = (uint64_t *)(base + posts);
    int within = seat->state.len == STATE * sizeof(uint64_t) && rank >= 0 && rank < n;
    within &= posts >= 0 && posts + 8 * POST * n <= seat->memory.len;
    for (int i = 0; i < 2; i++) {
        seat->stamps[i] = (uint64_t *)(base + stamps[i]);
        seat->slots[i] = base + slots[i];
        within &= stamps[i] >= 0 && slots[i] >= 0 && stamps[i] + 8 * n <= seat->memory.len && slots[i] + n * slot <= seat->memory.len;
    }
    if (!within) {
        PyErr_SetString(PyExc_ValueError, "the board does not lie within its memory");
        Py_DECREF(seat);
        return NULL;
    }
    return (PyObject *)seat;
}

static void seat_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyBuffer_Release(&((Seat *)self)->memory);
    PyBuffer_Release(&((Seat *)self)->state);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"come", (PyCFunction)(void (*)(void))seat_come, METH_FASTCALL, NULL},
    {"watch", (PyCFunction)(void (*)(void))seat_watch, METH_FASTCALL, NULL},
    {"meet", (PyCFunction)(void (*)(void))seat_meet, METH_FASTCALL, NULL},
    {"relay", (PyCFunction)(void (*)(void))seat_relay, METH_FASTCALL, NULL},
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

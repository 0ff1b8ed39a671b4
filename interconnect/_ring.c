/* The compiled half of shm_ring.py: both ends of a ring of frames, with the same methods.
 *
 * It is built where there is a C compiler, and left out where there is none. Only CPython's stable interface is used.
 */
#include "_passage.h"

#include <structmember.h>

/* write(header, payload) -> bool */
static PyObject *outgoing_write(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    Py_buffer header, payload;
    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "write takes a header and a payload, not %zd arguments", nargs);
        return NULL;
    }
    if (PyObject_GetBuffer(args[0], &header, PyBUF_SIMPLE)) return NULL;
    if (PyObject_GetBuffer(args[1], &payload, PyBUF_SIMPLE)) {
        PyBuffer_Release(&header);
        return NULL;
    }
    int written = put_frame((Ring *)self, header.buf, header.len, payload.buf, payload.len);
    PyBuffer_Release(&header);
    PyBuffer_Release(&payload);
    return written < 0 ? NULL : PyBool_FromLong(written);
}

/* leave() */
static PyObject *outgoing_leave(PyObject *self, PyObject *nothing) {
    Ring *ring = (Ring *)self;
    put_prefix(ring->frames + ring->tail % ring->capacity, NEXT_RING, 0);
    ring->tail += LINE;
    __atomic_store_n(&ring->words[TAIL_WORD], ring->tail, __ATOMIC_RELEASE);
    Py_RETURN_NONE;
}

static PyObject *part_of(const Ring *ring, const uint8_t *at, Py_ssize_t nbytes) {
    Py_ssize_t start = at - (uint8_t *)ring->memory.buf;
    PyObject *first = PyLong_FromSsize_t(start), *end = PyLong_FromSsize_t(start + nbytes), *slice = NULL;
    if (first != NULL && end != NULL) slice = PySlice_New(first, end, NULL);
    PyObject *part = slice == NULL ? NULL : PyObject_GetItem(ring->view, slice);
    Py_XDECREF(first), Py_XDECREF(end), Py_XDECREF(slice);
    return part;
}

/* read() -> (header, payload) or None */
static PyObject *incoming_read(PyObject *self, PyObject *nothing) {
    Ring *ring = (Ring *)self;
    Frame frame;
    int found = find_frame(ring, &frame);
    if (found < 0) return NULL;
    if (found == 0) Py_RETURN_NONE;
    PyObject *header = PyBytes_FromStringAndSize((const char *)frame.header, frame.header_nbytes);
    PyObject *payload = header == NULL ? NULL : part_of(ring, frame.payload, frame.nbytes);
    PyObject *both = payload == NULL ? NULL : PyTuple_Pack(2, header, payload);
    Py_XDECREF(header), Py_XDECREF(payload);
    if (both != NULL) ring->next = frame.start + frame.size;
    return both;
}

/* release() */
static PyObject *incoming_release(PyObject *self, PyObject *nothing) {
    give_back((Ring *)self);
    Py_RETURN_NONE;
}

/* stop() */
static PyObject *incoming_stop(PyObject *self, PyObject *nothing) {
    run_dry((Ring *)self);
    Py_RETURN_NONE;
}

static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *view;
    if (!PyArg_ParseTuple(args, "O", &view)) return NULL;
    Ring *ring = (Ring *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (ring == NULL) return NULL;
    if (PyObject_GetBuffer(view, &ring->memory, PyBUF_WRITABLE)) {
        Py_DECREF(ring);
        return NULL;
    }
    if (ring->memory.len <= HEAD || ring->memory.len % LINE) {
        PyErr_Format(PyExc_ValueError, "a ring of %zd B must have whole lines of %d B, more than two", ring->memory.len, LINE);
        Py_DECREF(ring);
        return NULL;
    }
    ring->words = ring->memory.buf, ring->frames = (uint8_t *)ring->memory.buf + HEAD, ring->capacity = ring->memory.len - HEAD;
    ring->view = PyMemoryView_FromObject(view);
    if (ring->view == NULL) {
        Py_DECREF(ring);
        return NULL;
    }
    return (PyObject *)ring;
}

static void ring_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyBuffer_Release(&((Ring *)self)->memory);
    Py_XDECREF(((Ring *)self)->view);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef outgoing_methods[] = {
    {"write", (PyCFunction)(void (*)(void))outgoing_write, METH_FASTCALL, NULL},
    {"leave", outgoing_leave, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMethodDef incoming_methods[] = {
    {"read", incoming_read, METH_NOARGS, NULL},
    {"release", incoming_release, METH_NOARGS, NULL},
    {"stop", incoming_stop, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef members[] = {
    {"capacity", T_ULONGLONG, offsetof(Ring, capacity), READONLY, NULL},
    {"memory", T_OBJECT_EX, offsetof(Ring, view), READONLY, NULL},
    {"left", T_BOOL, offsetof(Ring, left), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot outgoing_slots[] = {
    {Py_tp_new, ring_new}, {Py_tp_dealloc, ring_dealloc}, {Py_tp_methods, outgoing_methods}, {Py_tp_members, members}, {0, NULL},
};
static PyType_Slot incoming_slots[] = {
    {Py_tp_new, ring_new}, {Py_tp_dealloc, ring_dealloc}, {Py_tp_methods, incoming_methods}, {Py_tp_members, members}, {0, NULL},
};
static PyType_Spec specs[] = {
    {"superpod.interconnect._ring.Outgoing", sizeof(Ring), 0, Py_TPFLAGS_DEFAULT, outgoing_slots},
    {"superpod.interconnect._ring.Incoming", sizeof(Ring), 0, Py_TPFLAGS_DEFAULT, incoming_slots},
};

static int fill(PyObject *module) {
    static const char *const types[] = {"Outgoing", "Incoming", "Passage"};
    PyObject *errors = PyImport_ImportModule("superpod.interconnect.errors");
    if (errors == NULL || (bad_frame = PyObject_GetAttrString(errors, "BadFrame")) == NULL) return -1;
    Py_DECREF(errors);
    for (int i = 0; i < 3; i++) {
        PyObject *type = PyType_FromSpec(i < 2 ? &specs[i] : &passage_spec);
        if (type == NULL || PyModule_AddObjectRef(module, types[i], type)) return -1;
        if (i < 2) ends[i] = (PyTypeObject *)type; /* kept */
        else Py_DECREF(type);
    }
    return learn_names();
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill}, {0, NULL}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ring", NULL, 0, NULL, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__ring(void) { return PyModuleDef_Init(&module); }

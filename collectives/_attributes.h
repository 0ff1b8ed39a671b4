/* The attributes of Python objects that _express.c reads and writes, by name. */
#ifndef SUPERPOD_ATTRIBUTES_H
#define SUPERPOD_ATTRIBUTES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

enum { meeting, outstanding, failure, due, called, next, begin, end, under_way, latest, slots_, last, said, say, back, lasti,
       depth, NAMES };
static const char *const spelled[NAMES] = {"meeting", "outstanding", "failure", "due", "_called", "next", "begin", "end",
    "under_way", "_latest", "slots", "last", "_text", "_say", "f_back", "f_lasti", "depth"};
static PyObject *name[NAMES];

static int learn_names(void) {
    for (int i = 0; i < NAMES; i++)
        if ((name[i] = PyUnicode_InternFromString(spelled[i])) == NULL) return -1;
    return 0;
}

static int truth(PyObject *owner, int which) {
    PyObject *value = PyObject_GetAttr(owner, name[which]);
    if (value == NULL) return -1;
    int result = PyObject_IsTrue(value);
    Py_DECREF(value);
    return result;
}

static int set_whole(PyObject *owner, int which, uint64_t value) {
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    if (number == NULL) return -1;
    int failed = PyObject_SetAttr(owner, name[which], number);
    Py_DECREF(number);
    return failed;
}

static int get_whole(PyObject *owner, int which, uint64_t *value) {
    PyObject *number = PyObject_GetAttr(owner, name[which]);
    if (number == NULL) return -1;
    *value = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    return PyErr_Occurred() ? -1 : 0;
}

/* Call it, and drop what it returns. */
static int do_it(PyObject *result) {
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static PyObject *replace(PyObject **kept, PyObject *value) {
    PyObject *before = *kept;
    *kept = value;
    Py_XDECREF(before);
    return value;
}

/* The frame around this one; NULL: there is none, or an error. Takes the reference over. */
static PyObject *outer(PyObject *frame) {
    PyObject *result = PyObject_GetAttr(frame, name[back]);
    Py_DECREF(frame);
    if (result != Py_None) return result;
    Py_DECREF(result);
    return NULL;
}

#endif

/* The attributes of Python objects that _express.c reads and writes, by name. */
#ifndef SUPERPOD_ATTRIBUTES_H
#define SUPERPOD_ATTRIBUTES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

enum { meeting, outstanding, failure, due, called, next, begin, end, under_way, latest, slots_, last, said, say, back, lasti,
       depth, NAMES };
static const char *const spelled[NAMES] = {"meeting", "outstanding", "failure", "due", "_called", "next", "begin", "end",
    "under_way", "_latest", "slots", "last", "_text", "_say", "f_back", "f_lasti", "depth"};
#include "_objects.h"

/* The frame around this one; NULL: there is none, or an error. Takes the reference over. */
static PyObject *outer(PyObject *frame) {
    PyObject *result = PyObject_GetAttr(frame, name[back]);
    Py_DECREF(frame);
    if (result != Py_None) return result;
    Py_DECREF(result);
    return NULL;
}

#endif

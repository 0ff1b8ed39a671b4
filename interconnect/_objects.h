/* The attributes of Python objects, by the numbers of their names: an enum that ends with NAMES, and an array `spelled`, come
 * before this is included.
 */
#ifndef SUPERPOD_OBJECTS_H
#define SUPERPOD_OBJECTS_H

#include <stdint.h>

static PyObject *name[NAMES];

static inline int learn_names(void) {
    for (int i = 0; i < NAMES; i++)
        if ((name[i] = PyUnicode_InternFromString(spelled[i])) == NULL) return -1;
    return 0;
}

static inline int truth(PyObject *owner, int which) {
    PyObject *value = PyObject_GetAttr(owner, name[which]);
    if (value == NULL) return -1;
    int result = PyObject_IsTrue(value);
    Py_DECREF(value);
    return result;
}

static inline int set_whole(PyObject *owner, int which, uint64_t value) {
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    if (number == NULL) return -1;
    int failed = PyObject_SetAttr(owner, name[which], number);
    Py_DECREF(number);
    return failed;
}

static inline int get_whole(PyObject *owner, int which, uint64_t *value) {
    PyObject *number = PyObject_GetAttr(owner, name[which]);
    if (number == NULL) return -1;
    *value = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    return PyErr_Occurred() ? -1 : 0;
}

/* Call it, and drop what it returns. */
static inline int do_it(PyObject *result) {
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static inline PyObject *replace(PyObject **kept, PyObject *value) {
    PyObject *before = *kept;
    *kept = value;
    Py_XDECREF(before);
    return value;
}

#endif

/* A passage: the short way of messages of one form between two cards of a host, from the look whether something is in the way
 * to the word to the peer. It reads and writes the attributes of the Python objects that Mesh.post, Mesh.expect and
 * Mesh.advance do, in the same order and under the same lock; what is not as in most cases is left to them.
 */
#ifndef SUPERPOD_PASSAGE_H
#define SUPERPOD_PASSAGE_H

#include "_board.h"
#include "_ring.h"

#include <math.h>

enum { closed, failed, failure, due, leading, held, release_, over, outgoing, incoming, outlets, outstanding, backlog, sent, told,
       inlets, posted, early, rest, consumed, anyone, progress, patience, into, got, done, popleft, turns, NAMES };
static const char *const spelled[NAMES] = {"closed", "_failure", "failure", "due", "leading", "_held", "_release", "over", "_outgoing",
    "_incoming", "_outlets", "outstanding", "backlog", "bytes_sent", "_told", "_inlets", "posted", "early", "rest", "consumed",
    "_open", "_progress", "_patience", "into", "got", "done", "popleft", "_turns"};
#include "_objects.h"

/* What a passage knows, by the names of its arguments, which are keywords. */
enum { MESH, GROUP, STREAMS, TURNS, LINK, CONNECTION, SENDERS, ACQUIRE, RELEASE, OWNED, KEY, HEADER, WORDS, KNOWN };
static const char *const known[KNOWN] = {"mesh", "group", "streams", "turns", "link", "connection", "senders", "acquire", "release", "owned",
    "key", "header", "words"};
enum { NBYTES, WINDOW, CREDIT_AT, COST, SLOT, BELL, NUMBERS };
static const char *const numbers[NUMBERS] = {"nbytes", "window", "credit_at", "cost", "slot", "bell"};

static PyTypeObject *ends[2]; /* Outgoing and Incoming */

typedef struct {
    PyObject_HEAD
    PyObject *knows[KNOWN];
    Py_ssize_t numbers[NUMBERS];
    Py_buffer words; /* of the peer's inbox */
} Passage;

typedef enum { FAILED = -1, NOT_THERE, DONE, LONG_WAY } Way; /* what became of a message */

/* Whether an attribute is not None; -1: an error is set. */
static int is_there(PyObject *owner, int which) {
    PyObject *value = PyObject_GetAttr(owner, name[which]);
    if (value == NULL) return -1;
    Py_DECREF(value);
    return value != Py_None;
}

/* The first that is not 0. */
static int any_of(int a, int b, int c) { return a ? a : b ? b : c; }

/* Whether nothing can be sent or received through a connection any more, or Python has to say why. */
static int in_the_way(const Passage *p, PyObject *connection) {
    PyObject *const *k = p->knows;
    int way = any_of(truth(k[MESH], closed), is_there(k[MESH], failed), is_there(k[GROUP], failure));
    return way ? way : truth(connection, over);
}

/* Give back the room of the latest frame that Python has read. */
static int let_go(const Passage *p) {
    PyObject *link = p->knows[LINK], *connection = PyObject_GetAttr(link, name[held]);
    if (connection == NULL) return -1;
    int failed_ = connection == Py_None ? 0 : do_it(PyObject_CallMethodObjArgs(link, name[release_], connection, NULL));
    Py_DECREF(connection);
    return failed_;
}

/* The connection that the peer sends through: two that have connected at the same time have two. A borrowed reference; NULL
 * without an error: nothing has come yet. */
static PyObject *senders_connection(const Passage *p) {
    return PyDict_GetItemWithError(p->knows[SENDERS], PyTuple_GetItem(p->knows[KEY], 0));
}

/* An end of a connection's ring, a new reference; NULL without an error: it is not in C. */
static Ring *ring_of(PyObject *connection, int which) {
    PyObject *end = PyObject_GetAttr(connection, name[which]);
    if (end == NULL || PyObject_TypeCheck(end, ends[which == incoming])) return (Ring *)end;
    Py_DECREF(end);
    return NULL;
}

/* This card's stream, a borrowed reference; NULL without an error: there is none yet. */
static PyObject *stream_of(const Passage *p, int which) {
    PyObject *all = PyObject_GetAttr(p->knows[STREAMS], name[which]);
    PyObject *stream = all == NULL ? NULL : PyDict_GetItemWithError(all, p->knows[KEY]);
    Py_XDECREF(all); /* the streams have it */
    return stream;
}

/* Leave word in the peer's inbox, and ring if it sleeps; as PeersInbox.tell. */
static int tell(const Passage *p) {
    uint64_t count, *words = p->words.buf, once = 1;
    if (get_whole(p->knows[CONNECTION], told, &count) || set_whole(p->knows[CONNECTION], told, count + 1)) return -1;
    __atomic_store_n(&words[p->numbers[SLOT]], count + 1, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(&words[0], __ATOMIC_RELAXED)) {
        __atomic_store_n(&words[0], 0, __ATOMIC_RELEASE);
        Py_BEGIN_ALLOW_THREADS
        if (write((int)p->numbers[BELL], &once, sizeof once) < 0) once = 0; /* it is full, or no bell at all */
        Py_END_ALLOW_THREADS
    }
    return 0;
}

static Way send_locked(const Passage *p, const void *what) {
    const Array *array = what;
    int way = in_the_way(p, p->knows[CONNECTION]);
    if (way) return way < 0 ? FAILED : LONG_WAY;
    if (let_go(p)) return FAILED;
    PyObject *outlet = stream_of(p, outlets);
    uint64_t under_way, all;
    if (outlet == NULL) return PyErr_Occurred() ? FAILED : LONG_WAY;
    if ((way = truth(outlet, backlog)) || get_whole(outlet, outstanding, &under_way)) return way > 0 ? LONG_WAY : FAILED;
    under_way += p->numbers[NBYTES] + p->numbers[COST];
    if (under_way > (uint64_t)p->numbers[WINDOW]) return LONG_WAY;
    Ring *ring = ring_of(p->knows[CONNECTION], outgoing);
    if (ring == NULL) return PyErr_Occurred() ? FAILED : LONG_WAY;
    PyObject *header = p->knows[HEADER];
    int written = put_frame(ring, PyBytes_AsString(header), PyBytes_Size(header), array->address, p->numbers[NBYTES]);
    Py_DECREF(ring);
    if (written < 1) {
        PyErr_Clear(); /* Python comes to the same */
        return LONG_WAY;
    }
    if (set_whole(outlet, outstanding, under_way) || get_whole(p->knows[STREAMS], sent, &all)) return FAILED;
    if (set_whole(p->knows[STREAMS], sent, all + p->numbers[NBYTES]) || tell(p)) return FAILED;
    if ((way = truth(p->knows[TURNS], leading)) > 0) way = do_it(PyObject_CallMethodObjArgs(p->knows[MESH], name[progress], NULL));
    return way ? FAILED : DONE;
}

/* What is to be received: the array that it is for, and the Receive if that was posted already, or NULL. */
typedef struct {
    Array array;
    PyObject *receive;
} Wanted;

/* Whether others are to be served first: of the posted receives only this one, if it is posted, and untouched. */
static int posted_before(PyObject *inlet, PyObject *receive) {
    int way = truth(inlet, posted);
    if (receive == NULL || way < 1) return receive == NULL ? way : way < 0 ? -1 : 1; /* it is done, or was given up */
    PyObject *all = PyObject_GetAttr(inlet, name[posted]), *first = all == NULL ? NULL : PySequence_GetItem(all, 0);
    Py_XDECREF(all);
    if (first == NULL) return -1;
    way = first != receive;
    Py_DECREF(first);
    return way ? way : truth(receive, got);
}

/* Whether a message may be taken as it comes: nobody else waits, or is to be served first. */
static int before_it(const Passage *p, PyObject *inlet, PyObject *receive) {
    PyObject *at = PyObject_GetAttr(p->knows[GROUP], name[due]);
    if (at == NULL) return -1;
    int way = PyFloat_AsDouble(at) < INFINITY;
    Py_DECREF(at);
    if (!way) way = any_of(truth(p->knows[TURNS], leading), truth(p->knows[STREAMS], anyone), truth(inlet, rest));
    return way ? way : any_of(truth(inlet, early), posted_before(inlet, receive), 0);
}

/* The receive has its message. */
static int conclude(const Passage *p, PyObject *inlet, PyObject *receive) {
    PyObject *all = PyObject_GetAttr(inlet, name[posted]);
    if (all == NULL) return -1;
    int failed_ = do_it(PyObject_CallMethodObjArgs(all, name[popleft], NULL));
    Py_DECREF(all);
    return failed_ || set_whole(receive, got, p->numbers[NBYTES]) || PyObject_SetAttr(receive, name[done], Py_True) ? -1 : 0;
}

static Way take_frame(const Passage *p, Ring *ring, PyObject *inlet, const Wanted *wanted) {
    Frame frame;
    uint64_t count;
    if (get_whole(inlet, consumed, &count)) return FAILED;
    count += p->numbers[NBYTES] + p->numbers[COST];
    if (count >= (uint64_t)p->numbers[CREDIT_AT]) return LONG_WAY; /* which gives credit */
    int found = ring->left ? -1 : find_frame(ring, &frame);
    if (found == 0 && !ring->left) return NOT_THERE;
    PyErr_Clear(); /* Python comes to the same */
    PyObject *header = p->knows[HEADER];
    if (found < 1 || frame.nbytes != p->numbers[NBYTES] || frame.header_nbytes != PyBytes_Size(header) ||
        memcmp(frame.header, PyBytes_AsString(header), frame.header_nbytes))
        return LONG_WAY;
    memcpy(wanted->array.address, frame.payload, frame.nbytes);
    ring->next = frame.start + frame.size;
    give_back(ring);
    if (wanted->receive != NULL && conclude(p, inlet, wanted->receive)) return FAILED;
    return set_whole(inlet, consumed, count) ? FAILED : DONE;
}

static Way take_locked(const Passage *p, const void *what) {
    const Wanted *wanted = what;
    PyObject *connection = senders_connection(p), *inlet = connection == NULL ? NULL : stream_of(p, inlets);
    if (inlet == NULL) return PyErr_Occurred() ? FAILED : LONG_WAY;
    int way = any_of(in_the_way(p, connection), before_it(p, inlet, wanted->receive), 0);
    if (way) return way < 0 ? FAILED : LONG_WAY;
    Py_INCREF(inlet);
    Ring *ring = ring_of(connection, incoming);
    Way came = PyErr_Occurred() ? FAILED : LONG_WAY;
    if (ring != NULL) came = let_go(p) ? FAILED : take_frame(p, ring, inlet, wanted);
    Py_DECREF(inlet), Py_XDECREF((PyObject *)ring);
    return came;
}

/* Do it under the mesh's lock, unless this thread has it and was interrupted. */
static Way locked(const Passage *p, Way (*what)(const Passage *, const void *), const void *with) {
    PyObject *now_ = PyObject_GetAttr(p->knows[MESH], name[turns]), *mine = PyObject_CallNoArgs(p->knows[OWNED]);
    Py_XDECREF(now_), Py_XDECREF(mine);
    if (now_ == NULL || mine == NULL) return FAILED;
    if (mine == Py_True || now_ != p->knows[TURNS]) return LONG_WAY; /* others: this is a forked child, the lock its parent's */
    if (do_it(PyObject_CallNoArgs(p->knows[ACQUIRE]))) return FAILED;
    Way way = what(p, with);
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    if (do_it(PyObject_CallNoArgs(p->knows[RELEASE]))) way = FAILED;
    if (type != NULL) PyErr_Restore(type, error, trace);
    return way;
}

/* Give way to others until the ring has more, as long as the link's patience lasts, which is halved when it was in vain. */
static int give_way(const Passage *p) {
    PyObject *link = p->knows[LINK], *value = PyObject_GetAttr(link, name[patience]), *connection = senders_connection(p);
    Ring *ring = value == NULL || connection == NULL ? NULL : ring_of(connection, incoming);
    double seconds = value == NULL ? 0 : PyFloat_AsDouble(value);
    Py_XDECREF(value);
    if (ring == NULL) return PyErr_Occurred() ? -1 : 0;
    int more = 0;
    Py_BEGIN_ALLOW_THREADS
    double end = now() + seconds;
    do
        for (int i = 0; i < LOOKS && !(more = has_more(ring)); i++) sched_yield();
    while (!more && now() < end);
    Py_END_ALLOW_THREADS
    Py_DECREF(ring);
    if (more) return 0;
    value = PyFloat_FromDouble(seconds / 2);
    int failed_ = value == NULL || PyObject_SetAttr(link, name[patience], value);
    Py_XDECREF(value);
    return failed_ ? -1 : 0;
}

/* Read the array of a call; 0: it has to go the long way. */
static int read_message(const Passage *p, PyObject *given, int writable, Array *array) {
    if (read_array(given, writable, array)) PyErr_Clear();
    else if (array->nbytes < 0 || array->nbytes == p->numbers[NBYTES]) return array->address != NULL || !p->numbers[NBYTES];
    return 0;
}

/* send(array) -> bool: send a message. False: it has to go the long way. An array, or the address of what is long enough. */
static PyObject *passage_send(PyObject *self, PyObject *given) {
    Array array;
    if (!read_message((Passage *)self, given, 0, &array)) Py_RETURN_FALSE;
    Way way = locked((Passage *)self, send_locked, &array);
    return way == FAILED ? NULL : PyBool_FromLong(way == DONE);
}

static PyObject *take_soon(Passage *p, const Wanted *wanted, int waits) {
    Way way = locked(p, take_locked, wanted);
    if (way == NOT_THERE && waits) way = give_way(p) ? FAILED : locked(p, take_locked, wanted);
    return way == FAILED ? NULL : PyBool_FromLong(way == DONE);
}

/* recv(array) -> bool: receive a message if it is the next one, and comes soon. */
static PyObject *passage_recv(PyObject *self, PyObject *given) {
    Wanted wanted = {.receive = NULL};
    if (!read_message((Passage *)self, given, 1, &wanted.array)) Py_RETURN_FALSE;
    return take_soon((Passage *)self, &wanted, 1);
}

/* fetch(receive, waits) -> bool: the same for one that has been posted; at once, or soon if the caller waits. */
static PyObject *passage_fetch(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "fetch takes a receive and whether the caller waits, not %zd arguments", nargs);
        return NULL;
    }
    Wanted wanted = {.receive = args[0]};
    PyObject *array = PyObject_GetAttr(args[0], name[into]);
    if (array == NULL) return NULL;
    PyObject *result = Py_False;
    if (read_message((Passage *)self, array, 1, &wanted.array)) result = take_soon((Passage *)self, &wanted, args[1] == Py_True);
    else Py_INCREF(result);
    Py_DECREF(array);
    return result;
}

static int passage_traverse(PyObject *self, visitproc visit, void *arg) {
    for (int i = 0; i < KNOWN; i++) Py_VISIT(((Passage *)self)->knows[i]);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int passage_clear(PyObject *self) {
    for (int i = 0; i < KNOWN; i++) Py_CLEAR(((Passage *)self)->knows[i]);
    return 0;
}

static void passage_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    PyBuffer_Release(&((Passage *)self)->words);
    passage_clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static int learn_argument(PyObject *keywords, const char *which, PyObject **value) {
    *value = keywords == NULL ? NULL : PyDict_GetItemString(keywords, which);
    if (*value == NULL) PyErr_Format(PyExc_TypeError, "a passage needs the argument %s", which);
    return *value == NULL;
}

static int learn_all(Passage *p, PyObject *keywords) {
    PyObject *value;
    for (int i = 0; i < KNOWN; i++) {
        if (learn_argument(keywords, known[i], &value)) return -1;
        Py_INCREF(value);
        p->knows[i] = value;
    }
    for (int i = 0; i < NUMBERS; i++) {
        if (learn_argument(keywords, numbers[i], &value)) return -1;
        p->numbers[i] = PyLong_AsSsize_t(value);
        if (PyErr_Occurred()) return -1;
    }
    if (!PyBytes_Check(p->knows[HEADER]) || !PyTuple_Check(p->knows[KEY]) || !PyDict_Check(p->knows[SENDERS]) || PyObject_GetBuffer(p->knows[WORDS], &p->words, PyBUF_WRITABLE)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "header must be bytes, key a tuple, senders a dict");
        return -1;
    }
    if (p->numbers[SLOT] > 0 && 8 * (p->numbers[SLOT] + 1) <= p->words.len) return 0;
    PyErr_Format(PyExc_ValueError, "slot %zd does not lie within the inbox", p->numbers[SLOT]);
    return -1;
}

static PyObject *passage_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    Passage *p = (Passage *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (p == NULL || learn_all(p, keywords) == 0) return (PyObject *)p;
    Py_DECREF(p);
    return NULL;
}

static PyMethodDef passage_methods[] = {
    {"send", passage_send, METH_O, NULL},
    {"recv", passage_recv, METH_O, NULL},
    {"fetch", (PyCFunction)(void (*)(void))passage_fetch, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot passage_slots[] = {
    {Py_tp_new, passage_new}, {Py_tp_dealloc, passage_dealloc}, {Py_tp_traverse, passage_traverse}, {Py_tp_clear, passage_clear},
    {Py_tp_methods, passage_methods}, {0, NULL},
};
static PyType_Spec passage_spec = {"superpod.interconnect._ring.Passage", sizeof(Passage), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, passage_slots};

#endif

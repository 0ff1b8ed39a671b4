/* What _express.c knows of one kind of call: read from Python's arguments once, and used at every call. */
#ifndef SUPERPOD_LANE_H
#define SUPERPOD_LANE_H

#include "_attributes.h"
#include "_relay.h"
#include "_window.h"

#define MOST 3           /* arrays of a call */
#define MOST_MEETINGS 2  /* of a call */
#define WAITING 2        /* of a record's state, see recorder.py */

/* What a lane knows, by the names of its arguments, which are keywords. */
enum { SEAT, BOARD, ENGINE, AGREEMENT, GROUP, ASKED, WORKER, ACQUIRE, RELEASE, PLACE, RECORDER, SERIALS, WORDS, TEXT, LABEL,
       NBYTES, CHOICE, ROW, LATE, LATE_FOR, UNREADABLE, FAILED, MOVES, MEMORY, KNOWN };
static const char *const known[KNOWN] = {"seat", "board", "engine", "agreement", "group", "asked", "worker", "acquire", "release",
    "place", "recorder", "serials", "words", "text", "label", "nbytes", "choice", "row", "late", "late_for", "unreadable", "failed",
    "moves", "memory"};

static PyObject *seats; /* the type */

typedef struct { /* a slot of recorder.py */
    uint64_t serial, number, nbytes;
    double started, ended;
    uint8_t state, kind;
    uint16_t group;
    uint8_t unused[4];
    char text[112], place[88];
} Record;

typedef struct { /* one of the three, by how many numbers it has */
    enum { EXCHANGE = 11, RELAY = 9, READ = READING } kind;
    Exchange exchange;
    Relay relay;
    Reading reading;
} Move;

typedef struct {
    PyObject_HEAD
    PyObject *knows[KNOWN];
    Py_buffer memory; /* the recorder's */
    Move moves[MOST_MEETINGS];
    Told *told;                       /* of a reading: what it tells the others, and they it; or NULL */
    int meetings, arrays, writable;   /* writable: a bit for each array */
    uint32_t crc;
    uint16_t recorded;
    Py_ssize_t head;
    double patience, seconds;
    Record record;                    /* what all calls have in common */
    PyObject *place, *library, *code; /* the latest place, and the two code objects between which it was found */
    long lasti, depth;
} Lane;

static int move_fits(const Seat *seat, const Move *move, const Array *arrays) {
    switch (move->kind) {
    case RELAY: return relay_fits(&move->relay, arrays);
    case READ: return reading_fits(seat, &move->reading, arrays);
    default: return fits(seat, &move->exchange, arrays);
    }
}

/* Whether nothing that is still to be read is filled before. */
static int move_lies_apart(const Seat *seat, const Move *move, const Array *arrays) {
    switch (move->kind) {
    case RELAY: return relay_lies_apart(&move->relay, arrays);
    case READ: return lies_apart(seat, &move->reading, arrays);
    default: return 1; /* it gives everything before it takes anything */
    }
}

/* Whether an array may lie in parts, one a card. */
static int may_lie_in_parts(const Seat *seat, const Move *move, int array) {
    const Exchange *exchange = &move->exchange;
    const Reading *reading = &move->reading;
    if (move->kind == READ) return array == reading->show ? reading->step > 0 : reading->root < 0;
    if (move->kind == RELAY || exchange->give == exchange->into) return 0;
    if (array == exchange->give) return exchange->start == 0 && exchange->given == exchange->nbytes * seat->world_size;
    return exchange->at == 0 && !exchange->kind && exchange->root < 0 && !exchange->longer;
}

/* Read a move, which is a tuple of numbers. Returns the number of the array that it fills, -1: none; -2: an error is set. */
static int read_move(const Seat *seat, PyObject *given, int arrays, Move *move) {
    move->kind = PyTuple_Check(given) ? (int)PyTuple_Size(given) : EXCHANGE;
    switch (move->kind) {
    case RELAY: return read_relay(seat, given, arrays, &move->relay) ? -2 : move->relay.into;
    case READ: return read_reading(seat, given, arrays, &move->reading) ? -2 : move->reading.into;
    default: return read_exchange(seat, given, arrays, &move->exchange) ? -2 : move->exchange.into;
    }
}

/* Fill `room` bytes of a record with a bytes object, and zeros behind it. */
static int copy_words(PyObject *words, char *into, Py_ssize_t room) {
    Py_ssize_t size;
    char *bytes;
    if (PyBytes_AsStringAndSize(words, &bytes, &size)) return -1;
    memset(into, 0, room);
    memcpy(into, bytes, size < room ? size : room);
    return 0;
}

static int lane_traverse(PyObject *self, visitproc visit, void *arg) {
    Lane *lane = (Lane *)self;
    for (int i = 0; i < KNOWN; i++) Py_VISIT(lane->knows[i]);
    Py_VISIT(lane->place);
    Py_VISIT(lane->library);
    Py_VISIT(lane->code);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int lane_clear(PyObject *self) {
    Lane *lane = (Lane *)self;
    for (int i = 0; i < KNOWN; i++) Py_CLEAR(lane->knows[i]);
    Py_CLEAR(lane->place);
    Py_CLEAR(lane->library);
    Py_CLEAR(lane->code);
    return 0;
}

static void lane_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    PyBuffer_Release(&((Lane *)self)->memory);
    PyMem_Free(((Lane *)self)->told);
    lane_clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyObject *find(PyObject *keywords, const char *which) {
    PyObject *value = keywords == NULL ? NULL : PyDict_GetItemString(keywords, which);
    if (value == NULL) PyErr_Format(PyExc_TypeError, "a lane needs the argument %s", which);
    return value;
}

/* Read the arguments that are numbers. */
static int find_numbers(Lane *lane, PyObject *keywords) {
    static const char *const names[] = {"arrays", "crc", "recorded", "head", "patience", "seconds"};
    PyObject *value[6];
    for (int i = 0; i < 6; i++)
        if ((value[i] = find(keywords, names[i])) == NULL) return -1;
    unsigned long crc = PyLong_AsUnsignedLong(value[1]), recorded = PyLong_AsUnsignedLong(value[2]);
    lane->crc = (uint32_t)crc, lane->recorded = (uint16_t)recorded, lane->head = PyLong_AsSsize_t(value[3]);
    lane->patience = PyFloat_AsDouble(value[4]), lane->seconds = PyFloat_AsDouble(value[5]);
    return PyErr_Occurred() ? -1 : whole(value[0], 0, MOST, &lane->arrays);
}

static int read_moves(Lane *lane) {
    PyObject *moves = lane->knows[MOVES];
    lane->meetings = (int)PyTuple_Size(moves);
    if (lane->meetings > MOST_MEETINGS) {
        PyErr_Format(PyExc_ValueError, "a call makes at most %d moves", MOST_MEETINGS);
        return -1;
    }
    for (int i = 0; i < lane->meetings; i++) {
        int into = read_move((Seat *)lane->knows[SEAT], PyTuple_GetItem(moves, i), lane->arrays, &lane->moves[i]);
        if (into < -1) return -1;
        if (lane->moves[i].kind == READ && lane->told == NULL) {
            lane->told = PyMem_Calloc(2 * ((Seat *)lane->knows[SEAT])->world_size, sizeof(Told));
            if (lane->told == NULL) return -1;
        }
        if (into >= 0) lane->writable |= 1 << into;
    }
    return 0;
}

/* Read all arguments, but for the memory. */
static int set_up(Lane *lane, PyObject *keywords) {
    PyObject **k = lane->knows;
    for (int i = 0; i < KNOWN; i++) {
        if ((k[i] = find(keywords, known[i])) == NULL) return -1;
        Py_INCREF(k[i]);
    }
    if (PyObject_IsInstance(k[SEAT], seats) != 1 || !PyTuple_Check(k[MOVES]) || !PyList_Check(k[ROW]) || PyList_Size(k[ROW]) != 3 ||
        !PyDict_Check(k[ASKED])) {
        PyErr_SetString(PyExc_TypeError, "seat must be a Seat, moves a tuple, row a list of 3, asked a dict");
        return -1;
    }
    if (find_numbers(lane, keywords) || read_moves(lane)) return -1;
    lane->record.nbytes = PyLong_AsUnsignedLongLong(k[NBYTES]);
    lane->record.state = WAITING, lane->record.group = lane->recorded;
    return PyErr_Occurred() ? -1 : copy_words(k[LABEL], lane->record.text, sizeof lane->record.text);
}

static PyObject *lane_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    Lane *lane = (Lane *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (lane == NULL) return NULL;
    if (set_up(lane, keywords) == 0 && PyObject_GetBuffer(lane->knows[MEMORY], &lane->memory, PyBUF_WRITABLE) == 0)
        return (PyObject *)lane;
    if (!PyErr_Occurred()) PyErr_NoMemory();
    Py_DECREF(lane);
    return NULL;
}

#endif

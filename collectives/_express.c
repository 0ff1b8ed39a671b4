/* The compiled half of express.py: a call that is made again and again, from the look whether something is in the way to
 * the count in the ledger. It reads and writes the attributes of the Python objects that Express.run does, in the same
 * order; what is not as it was the last time (the place of the call, the group's latest call, cards that are late) is
 * left to their methods.
 *
 * It is built where there is a C compiler, and left out where there is none. Only CPython's stable interface is used.
 */
#include "_attributes.h"
#include "_relay.h"

#include <math.h>

#define MOST 3           /* arrays of a call */
#define MOST_MEETINGS 2  /* of a call */
#define ODD 0x9E3779B1u  /* see table.py */
#define DONE 3           /* these two see recorder.py */
#define WAITING 2

/* What a lane knows, by the names of its arguments. */
enum { SEAT, BOARD, ENGINE, AGREEMENT, GROUP, ASKED, WORKER, ACQUIRE, RELEASE, PLACE, RECORDER, SERIALS, WORDS, TEXT, LABEL,
       NBYTES, CHOICE, ROW, LATE, LATE_FOR, FAILED, MOVES, MEMORY, KNOWN };
static char *known[] = {"seat", "board", "engine", "agreement", "group", "asked", "worker", "acquire", "release", "place",
    "recorder", "serials", "words", "text", "label", "nbytes", "choice", "row", "late", "late_for", "failed", "moves", "memory",
    "arrays", "crc", "recorded", "head", "patience", "seconds", NULL};

static PyObject *seats; /* the type */

typedef struct { /* a slot of recorder.py */
    uint64_t serial, number, nbytes;
    double started, ended;
    uint8_t state, kind;
    uint16_t group;
    uint8_t unused[4];
    char text[112], place[88];
} Record;

typedef struct { /* an exchange, or else a relay */
    int is_relay;
    Exchange exchange;
    Relay relay;
} Move;

typedef struct {
    PyObject_HEAD
    PyObject *knows[KNOWN];
    Py_buffer memory; /* the recorder's */
    Move moves[MOST_MEETINGS];
    int meetings, arrays, writable;   /* writable: a bit for each array */
    unsigned int crc, recorded;
    Py_ssize_t head;
    double patience, seconds;
    Record record;                    /* what all calls have in common */
    PyObject *place, *library, *code; /* the latest place, and the two code objects between which it was found */
    long lasti, depth;
} Lane;

typedef struct { /* one call */
    uint64_t number, serial;
    double started;
    int noted; /* the agreement has begun it itself */
    Record *record; /* or NULL: nothing is recorded */
    PyObject *serial_object;
} Turn;

/* Whether a call would have to wait for something, or to look closer. */
static int in_the_way_of_one(Lane *lane) {
    int found = truth(lane->knows[WORKER], outstanding);
    if (found) return found;
    PyObject *group = lane->knows[GROUP], *value = PyObject_GetAttr(group, name[failure]);
    if (value == NULL) return -1;
    Py_DECREF(value);
    if (value != Py_None || PyDict_Size(lane->knows[ASKED])) return 1;
    if ((value = PyObject_GetAttr(group, name[due])) == NULL) return -1;
    double at = PyFloat_AsDouble(value);
    Py_DECREF(value);
    return PyErr_Occurred() ? -1 : at < INFINITY;
}

/* The same for one that has not yet said that it meets. */
static int in_the_way(Lane *lane) {
    int found = truth(lane->knows[ENGINE], meeting);
    return found ? found : in_the_way_of_one(lane);
}

/* Whether the user's code calls from where it did the last time: see Caller.place. If `learn`, that is found out. */
static int at_the_same_place(Lane *lane, int learn) {
    PyObject *frame = (PyObject *)PyThreadState_GetFrame(PyThreadState_Get());
    for (long i = 1; frame != NULL && i < lane->depth; i++) frame = outer(frame);
    if (frame == NULL) return 0;
    PyObject *code = (PyObject *)PyFrame_GetCode((PyFrameObject *)frame);
    Py_DECREF(code); /* the frame has it */
    if (learn) Py_INCREF(code), replace(&lane->library, code);
    int same = code == lane->library;
    if ((frame = outer(frame)) == NULL) return 0;
    code = (PyObject *)PyFrame_GetCode((PyFrameObject *)frame);
    Py_DECREF(code);
    PyObject *offset = same && code == lane->code ? PyObject_GetAttr(frame, name[lasti]) : NULL;
    Py_DECREF(frame);
    same = offset != NULL && PyLong_AsLong(offset) == lane->lasti;
    Py_XDECREF(offset);
    return same;
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

/* What is kept of a place: its words for the record, and between which frames it was found. */
static int learn_place(Lane *lane, PyObject *place) {
    PyObject *words = PyObject_CallFunctionObjArgs(lane->knows[WORDS], place, NULL);
    if (words == NULL) return -1;
    int failed = copy_words(words, lane->record.place, sizeof lane->record.place);
    Py_DECREF(words);
    replace(&lane->library, NULL), replace(&lane->code, NULL); /* nothing is the same as these */
    if (failed || place == Py_None) return failed;
    PyObject *caller = PyObject_GetAttrString(lane->knows[PLACE], "__self__"), *code = PyTuple_GetItem(place, 0);
    uint64_t how_deep;
    failed = caller == NULL || code == NULL || get_whole(caller, depth, &how_deep);
    Py_XDECREF(caller);
    if (failed) return -1;
    Py_INCREF(code);
    replace(&lane->code, code);
    lane->depth = (long)how_deep, lane->lasti = PyLong_AsLong(PyTuple_GetItem(place, 1));
    at_the_same_place(lane, 1);
    return PyErr_Occurred() ? -1 : 0;
}

/* Find the place of the call again. */
static int find_place(Lane *lane) {
    PyObject *place = PyObject_CallNoArgs(lane->knows[PLACE]);
    if (place == NULL) return -1;
    Py_INCREF(place); /* the lane's own */
    replace(&lane->place, place);
    int failed = learn_place(lane, place);
    Py_DECREF(place);
    return failed;
}

/* What Recorder.begin does. */
static int note_begin(Lane *lane, Turn *turn) {
    uint64_t slots;
    if (get_whole(lane->knows[RECORDER], slots_, &slots)) return -1;
    if (slots == 0) return 0;
    if ((turn->serial_object = PyIter_Next(lane->knows[SERIALS])) == NULL) return -1;
    turn->serial = PyLong_AsUnsignedLongLong(turn->serial_object);
    if (PyErr_Occurred() || PyObject_SetAttr(lane->knows[RECORDER], name[latest], turn->serial_object)) return -1;
    turn->record = (Record *)((uint8_t *)lane->memory.buf + lane->head) + turn->serial % slots;
    if ((uint8_t *)(turn->record + 1) > (uint8_t *)lane->memory.buf + lane->memory.len) {
        PyErr_SetString(PyExc_SystemError, "the record lies outside its memory");
        return -1;
    }
    *turn->record = lane->record;
    turn->record->serial = turn->serial + 1, turn->record->number = turn->number, turn->record->started = turn->started;
    return 0;
}

/* What Agreement.begin does. */
static int begin_turn(Lane *lane, Turn *turn) {
    PyObject *agreement = lane->knows[AGREEMENT], *text = lane->knows[TEXT];
    PyObject *before = PyObject_GetAttr(agreement, name[called]);
    if (before == NULL) return -1;
    Py_DECREF(before);
    if (before == text) {
        if (get_whole(agreement, next, &turn->number) || set_whole(agreement, next, turn->number + 1)) return -1;
        return note_begin(lane, turn);
    }
    PyObject *started = PyFloat_FromDouble(turn->started), *number;
    if (started == NULL) return -1;
    turn->noted = 1;
    number = PyObject_CallMethodObjArgs(agreement, name[begin], text, lane->knows[NBYTES], started, lane->place, NULL);
    Py_DECREF(started);
    if (number == NULL) return -1;
    turn->number = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    return PyErr_Occurred() ? -1 : 0;
}

typedef struct {
    Lane *lane;
    const Turn *turn;
} Which;

static int late_for(void *context, Py_ssize_t rank, uint64_t count) {
    Which *which = context;
    PyObject *how = which->lane->knows[LATE_FOR];
    unsigned long long number = which->turn->number;
    return do_it(PyObject_CallFunction(how, "KdnK", number, which->turn->started, rank, (unsigned long long)count));
}

static int meet(Lane *lane, const Move *move, const Array *arrays, const Turn *turn) {
    Seat *seat = (Seat *)lane->knows[SEAT];
    PyObject *text = PyObject_GetAttr(lane->knows[BOARD], name[said]);
    if (text == NULL) return -1;
    Py_DECREF(text);
    if (text != lane->knows[TEXT] && do_it(PyObject_CallMethodObjArgs(lane->knows[BOARD], name[say], lane->knows[TEXT], NULL)))
        return -1;
    uint32_t tag = lane->crc + (uint32_t)turn->number * ODD;
    if (move->is_relay) {
        Which which = {lane, turn};
        return relay(seat, tag, &move->relay, arrays, lane->patience, lane->seconds, late_for, &which);
    }
    if (exchange(seat, tag, &move->exchange, arrays, lane->patience, lane->seconds)) return 0;
    if (do_it(PyObject_CallFunction(lane->knows[LATE], "Kd", (unsigned long long)turn->number, turn->started))) return -1;
    take(seat, &move->exchange, arrays);
    return 0;
}

/* One more in the ledger's row: calls, bytes, seconds. */
static int count_turn(Lane *lane, double seconds) {
    PyObject *row = lane->knows[ROW], *more[3] = {PyLong_FromLong(1), lane->knows[NBYTES], PyFloat_FromDouble(seconds)};
    int failed = more[0] == NULL || more[2] == NULL;
    for (int i = 0; i < 3 && !failed; i++) {
        PyObject *sum = PyNumber_Add(PyList_GetItem(row, i), more[i]);
        failed = sum == NULL || PyList_SetItem(row, i, sum);
    }
    Py_XDECREF(more[0]), Py_XDECREF(more[2]);
    return failed ? -1 : 0;
}

/* What Agreement.end does, and the count. */
static int end_turn(Lane *lane, Turn *turn) {
    double ended = now();
    if (turn->noted) {
        PyObject *at = PyFloat_FromDouble(ended);
        int failed = at == NULL || do_it(PyObject_CallMethodObjArgs(lane->knows[AGREEMENT], name[end], at, NULL));
        Py_XDECREF(at);
        if (failed) return -1;
    } else if (turn->record != NULL && turn->record->serial == turn->serial + 1) /* no later call has its slot */
        turn->record->ended = ended, turn->record->state = DONE;
    if (PyObject_SetAttr(lane->knows[ENGINE], name[last], lane->knows[CHOICE])) return -1;
    return count_turn(lane, ended - turn->started);
}

/* An error is set: the group has failed by it. */
static void give_up(Lane *lane, Turn *turn) {
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (turn->record != NULL) PyObject_SetAttr(lane->knows[AGREEMENT], name[under_way], turn->serial_object);
    if (do_it(PyObject_CallFunctionObjArgs(lane->knows[FAILED], error, NULL))) {
        Py_XDECREF(type), Py_XDECREF(error), Py_XDECREF(trace);
        return;
    }
    PyErr_Restore(type, error, trace);
}

/* 0: done; 1: something is in the way; -1: it has failed. */
static int carry_out(Lane *lane, const Array *arrays) {
    Turn turn = {0};
    if (set_whole(lane->knows[ENGINE], meeting, PyThread_get_thread_ident())) return -1; /* whoever interrupts it is told */
    if (!at_the_same_place(lane, 0)) {
        PyErr_Clear();
        int way = find_place(lane) ? -1 : in_the_way_of_one(lane); /* that was Python: others may have come in between */
        if (way) return set_whole(lane->knows[ENGINE], meeting, 0) || way < 0 ? -1 : 1;
    }
    turn.started = now();
    int failed = begin_turn(lane, &turn);
    for (int i = 0; i < lane->meetings && !failed; i++) failed = meet(lane, &lane->moves[i], arrays, &turn);
    if (failed) give_up(lane, &turn);
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    if (set_whole(lane->knows[ENGINE], meeting, 0)) failed = -1;
    PyErr_Restore(type, error, trace);
    if (!failed) failed = end_turn(lane, &turn);
    Py_XDECREF(turn.serial_object);
    return failed;
}

/* run(*arrays, into=...) -> bool: see Express.run. */
static PyObject *lane_run(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
    Lane *lane = (Lane *)self;
    Array arrays[MOST];
    Py_ssize_t given = nargs + (keywords == NULL ? 0 : PyTuple_Size(keywords));
    if (given < lane->arrays) Py_RETURN_FALSE;
    for (int i = 0; i < lane->arrays; i++)
        if (read_array(args[i], lane->writable >> i & 1, &arrays[i])) {
            PyErr_Clear(); /* the long way says what is wrong with it, or makes a copy */
            Py_RETURN_FALSE;
        }
    for (int i = 0; i < lane->meetings; i++)
        if (lane->moves[i].is_relay ? relay_fits(&lane->moves[i].relay, arrays)
                                    : fits((Seat *)lane->knows[SEAT], &lane->moves[i].exchange, arrays))
            return NULL;
    if (do_it(PyObject_CallNoArgs(lane->knows[ACQUIRE]))) return NULL;
    int way = in_the_way(lane);
    if (!way) way = carry_out(lane, arrays);
    int failed = way < 0;
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    failed |= do_it(PyObject_CallNoArgs(lane->knows[RELEASE])) != 0;
    if (type != NULL) PyErr_Restore(type, error, trace);
    return failed ? NULL : PyBool_FromLong(!way);
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
    lane_clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Lane(...): the arguments are keywords, see `known`. */
static PyObject *lane_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject **k;
    Lane *lane = (Lane *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (lane == NULL) return NULL;
    PyObject *given[KNOWN];
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "$OOOOOOOOOOOOOOOOOOOOOOOiIIndd", known, &given[0], &given[1], &given[2],
            &given[3], &given[4], &given[5], &given[6], &given[7], &given[8], &given[9], &given[10], &given[11], &given[12],
            &given[13], &given[14], &given[15], &given[16], &given[17], &given[18], &given[19], &given[20], &given[21], &given[22],
            &lane->arrays, &lane->crc, &lane->recorded, &lane->head, &lane->patience, &lane->seconds))
        goto fail;
    k = lane->knows;
    for (int i = 0; i < KNOWN; i++) Py_INCREF(k[i] = given[i]);
    if (PyObject_IsInstance(k[SEAT], seats) != 1 || !PyTuple_Check(k[MOVES]) || !PyList_Check(k[ROW]) || PyList_Size(k[ROW]) != 3 || !PyDict_Check(k[ASKED])) {
        PyErr_SetString(PyExc_TypeError, "seat must be a Seat, moves a tuple, row a list of 3, asked a dict");
        goto fail;
    }
    lane->meetings = (int)PyTuple_Size(k[MOVES]);
    if (lane->meetings > MOST_MEETINGS || lane->arrays < 0 || lane->arrays > MOST) {
        PyErr_Format(PyExc_ValueError, "a call has at most %d meetings and %d arrays", MOST_MEETINGS, MOST);
        goto fail;
    }
    for (int i = 0; i < lane->meetings; i++) {
        PyObject *move_ = PyTuple_GetItem(k[MOVES], i);
        Move *move = &lane->moves[i];
        move->is_relay = PyTuple_Check(move_) && PyTuple_Size(move_) == 9;
        if (move->is_relay ? read_relay((Seat *)k[SEAT], move_, lane->arrays, &move->relay)
                           : read_exchange((Seat *)k[SEAT], move_, lane->arrays, &move->exchange))
            goto fail;
        int into = move->is_relay ? move->relay.into : move->exchange.into;
        if (into >= 0) lane->writable |= 1 << into;
    }
    lane->record.nbytes = PyLong_AsUnsignedLongLong(k[NBYTES]);
    lane->record.state = WAITING, lane->record.group = (uint16_t)lane->recorded;
    if (PyErr_Occurred() || copy_words(k[LABEL], lane->record.text, sizeof lane->record.text)) goto fail;
    if (PyObject_GetBuffer(k[MEMORY], &lane->memory, PyBUF_WRITABLE)) goto fail;
    return (PyObject *)lane;
fail:
    Py_DECREF(lane);
    return NULL;
}

static PyMethodDef methods[] = {
    {"run", (PyCFunction)(void (*)(void))lane_run, METH_FASTCALL | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, lane_new}, {Py_tp_dealloc, lane_dealloc}, {Py_tp_traverse, lane_traverse}, {Py_tp_clear, lane_clear},
    {Py_tp_methods, methods}, {0, NULL},
};
static PyType_Spec spec = {"superpod.collectives._express.Lane", sizeof(Lane), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};

static int fill(PyObject *module) {
    if (learn_names()) return -1;
    PyObject *board = PyImport_ImportModule("superpod.interconnect._board");
    if (board == NULL || (seats = PyObject_GetAttrString(board, "Seat")) == NULL) return -1;
    Py_DECREF(board);
    PyObject *type = PyType_FromSpec(&spec);
    int failed = type == NULL || PyModule_AddObjectRef(module, "Lane", type);
    failed = failed || PyModule_AddIntConstant(module, "RECORD", sizeof(Record));
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill}, {0, NULL}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_express", NULL, 0, NULL, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__express(void) { return PyModuleDef_Init(&module); }

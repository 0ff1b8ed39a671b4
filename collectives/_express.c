/* The compiled half of express.py: a call that is made again and again, from the look whether something is in the way to
 * the count in the ledger. It reads and writes the attributes of the Python objects that Express.run does, in the same
 * order; what is not as it was the last time (the place of the call, the group's latest call, cards that are late) is
 * left to their methods.
 *
 * It is built where there is a C compiler, and left out where there is none. Only CPython's stable interface is used.
 */
#include "_lane.h"

#include <math.h>

#define ODD 0x9E3779B1u  /* see table.py */
#define DONE 3      /* of a record's state, see recorder.py */

typedef struct { /* one call */
    uint64_t number, serial;
    double started;
    int noted; /* the agreement has begun it itself */
    Record *record; /* or NULL: nothing is recorded */
    PyObject *serial_object;
} Turn;

/* Whether the group has failed, or its calls have to look closer. */
static int group_in_the_way(Lane *lane) {
    PyObject *group = lane->knows[GROUP], *value = PyObject_GetAttr(group, name[failure]);
    if (value == NULL) return -1;
    Py_DECREF(value);
    if (value != Py_None || PyDict_Size(lane->knows[ASKED])) return 1;
    if ((value = PyObject_GetAttr(group, name[due])) == NULL) return -1;
    double at = PyFloat_AsDouble(value);
    Py_DECREF(value);
    return PyErr_Occurred() ? -1 : at < INFINITY;
}

/* Whether a call would have to wait for something, or to look closer. */
static int in_the_way_of_one(Lane *lane) {
    int found = truth(lane->knows[WORKER], outstanding);
    return found ? found : group_in_the_way(lane);
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

/* What is kept of a place: its words for the record, and between which frames it was found. */
static int learn_words(Lane *lane, PyObject *place) {
    PyObject *words = PyObject_CallFunctionObjArgs(lane->knows[WORDS], place, NULL);
    if (words == NULL) return -1;
    int failed = copy_words(words, lane->record.place, sizeof lane->record.place);
    Py_DECREF(words);
    replace(&lane->library, NULL), replace(&lane->code, NULL); /* nothing is the same as these */
    return failed;
}

static int learn_place(Lane *lane, PyObject *place) {
    int failed = learn_words(lane, place);
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

static int meet(Lane *lane, uint32_t tag, const Exchange *what, const Array *arrays, const Turn *turn) {
    Seat *seat = (Seat *)lane->knows[SEAT];
    if (exchange(seat, tag, what, arrays, lane->patience, lane->seconds)) return 0;
    if (do_it(PyObject_CallFunction(lane->knows[LATE], "Kd", (unsigned long long)turn->number, turn->started))) return -1;
    take(seat, what, arrays);
    return 0;
}

/* All tell where their arrays lie; each reads; nobody changes its own before all have read. */
static int meet_and_read(Lane *lane, uint32_t tag, const Reading *what, const Array *arrays, const Turn *turn) {
    Seat *seat = (Seat *)lane->knows[SEAT];
    Py_ssize_t n = seat->world_size, row = n * sizeof(Told);
    Array tables[2] = {{(uint8_t *)lane->told, row, NULL}, {(uint8_t *)(lane->told + n), row, NULL}};
    const Exchange telling = {.give = 0, .given = row, .into = 1, .offset = seat->rank * sizeof(Told), .nbytes = sizeof(Told), .root = -1};
    const Exchange nothing = {.give = -1, .into = -1, .root = -1};
    Py_ssize_t whom = 0;
    int error;
    tell_all(seat, what, arrays, lane->told);
    if (meet(lane, tag, &telling, tables, turn)) return -1;
    Py_BEGIN_ALLOW_THREADS
    error = read_all(seat, what, lane->told + n, arrays, &whom);
    Py_END_ALLOW_THREADS
    if (!error) return meet(lane, tag, &nothing, tables, turn);
    unsigned long long number = turn->number;
    return do_it(PyObject_CallFunction(lane->knows[UNREADABLE], "Kdni", number, turn->started, whom, error));
}

static int make_move(Lane *lane, const Move *move, const Array *arrays, const Turn *turn) {
    PyObject *text = PyObject_GetAttr(lane->knows[BOARD], name[said]);
    if (text == NULL) return -1;
    Py_DECREF(text);
    if (text != lane->knows[TEXT] && do_it(PyObject_CallMethodObjArgs(lane->knows[BOARD], name[say], lane->knows[TEXT], NULL)))
        return -1;
    uint32_t tag = lane->crc + (uint32_t)turn->number * ODD;
    Which which = {lane, turn};
    switch (move->kind) {
    case RELAY:
        return relay((Seat *)lane->knows[SEAT], tag, &move->relay, arrays, lane->patience, lane->seconds, late_for, &which);
    case READ: return meet_and_read(lane, tag, &move->reading, arrays, turn);
    default: return meet(lane, tag, &move->exchange, arrays, turn);
    }
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

/* The engine says already that it meets. 0: done; -1: it has failed. */
static int take_turn(Lane *lane, const Array *arrays) {
    Turn turn = {.started = now()};
    int failed = begin_turn(lane, &turn);
    for (int i = 0; i < lane->meetings && !failed; i++) failed = make_move(lane, &lane->moves[i], arrays, &turn);
    if (failed) give_up(lane, &turn);
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    if (set_whole(lane->knows[ENGINE], meeting, 0)) failed = -1;
    PyErr_Restore(type, error, trace);
    if (!failed) failed = end_turn(lane, &turn);
    Py_XDECREF(turn.serial_object);
    return failed;
}

/* 0: done; 1: something is in the way; -1: it has failed. */
static int carry_out(Lane *lane, const Array *arrays) {
    if (set_whole(lane->knows[ENGINE], meeting, PyThread_get_thread_ident())) return -1; /* whoever interrupts it is told */
    if (!at_the_same_place(lane, 0)) {
        PyErr_Clear();
        int way = find_place(lane) ? -1 : in_the_way_of_one(lane); /* that was Python: others may have come in between */
        if (way) return set_whole(lane->knows[ENGINE], meeting, 0) || way < 0 ? -1 : 1;
    }
    return take_turn(lane, arrays);
}

/* Read an array of a call, or a bytes object with the addresses of its parts. 0: it has to go the long way, which says what
 * is wrong with it, or makes a copy. */
static int read_operand(Lane *lane, int i, PyObject *given, Array *array) {
    Seat *seat = (Seat *)lane->knows[SEAT];
    if (!PyBytes_Check(given)) {
        if (read_array(given, lane->writable >> i & 1, array) == 0) return array->address != NULL || !lane->record.nbytes;
        PyErr_Clear();
        return 0;
    }
    if (lane->meetings != 1 || !may_lie_in_parts(seat, &lane->moves[0], i)) return 0;
    if (PyBytes_Size(given) != seat->world_size * (Py_ssize_t)sizeof array->parts[0]) return 0;
    array->parts = (uint8_t *const *)PyBytes_AsString(given), array->nbytes = -1, array->address = NULL;
    for (Py_ssize_t r = 0; r < seat->world_size; r++)
        if (array->parts[r] == NULL) return 0;
    return 1;
}

/* What is kept of the place of a call that another thread has made. */
static int take_place(Lane *lane, PyObject *place) {
    if (place == lane->place) return 0;
    Py_INCREF(place);
    replace(&lane->place, place);
    return learn_words(lane, place);
}

/* Read all arrays. 1: they can be used; 0: the call has to go the long way; -1: an error is set. */
static int read_operands(Lane *lane, PyObject *const *args, Py_ssize_t given, Array *arrays) {
    Seat *seat = (Seat *)lane->knows[SEAT];
    if (given < lane->arrays) return 0;
    for (int i = 0; i < lane->arrays; i++)
        if (!read_operand(lane, i, args[i], &arrays[i])) return 0;
    for (int i = 0; i < lane->meetings; i++) {
        if (!move_fits(seat, &lane->moves[i], arrays)) return -1;
        if (!move_lies_apart(seat, &lane->moves[i], arrays)) return 0;
    }
    return 1;
}

/* run_issued(place, *arrays) -> bool: the same for a call that was issued there, and whose turn it is: see Engine.issue. */
static PyObject *lane_run_issued(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    Lane *lane = (Lane *)self;
    Array arrays[MOST];
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "run_issued needs the place of the call");
        return NULL;
    }
    int usable = read_operands(lane, args + 1, nargs - 1, arrays);
    if (usable < 0 || (usable && take_place(lane, args[0]))) return NULL;
    int way = usable ? group_in_the_way(lane) : 1;
    if (!way) way = set_whole(lane->knows[ENGINE], meeting, PyThread_get_thread_ident()) ? -1 : take_turn(lane, arrays);
    return way < 0 ? NULL : PyBool_FromLong(!way);
}

/* run(*arrays) -> bool: see Express.run. An array is given as in read_operand; an address is of one in one piece. */
static PyObject *lane_run(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    Lane *lane = (Lane *)self;
    Array arrays[MOST];
    int usable = read_operands(lane, args, nargs, arrays);
    if (usable < 0) return NULL;
    if (!usable) Py_RETURN_FALSE;
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

static PyMethodDef methods[] = {
    {"run", (PyCFunction)(void (*)(void))lane_run, METH_FASTCALL, NULL},
    {"run_issued", (PyCFunction)(void (*)(void))lane_run_issued, METH_FASTCALL, NULL},
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

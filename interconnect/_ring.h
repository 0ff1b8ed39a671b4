/* A ring of frames in C, on the memory that shm_ring.py describes: so an end in C and one in Python understand each other.
 * Of _ring.c, which shows its ends to Python, and of _passage.h, which moves whole messages through them.
 */
#ifndef SUPERPOD_RING_H
#define SUPERPOD_RING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#define LINE 64
#define HEAD (2 * LINE)
#define NEAR (8 << 10)
#define TO_THE_START 0xFFFFFFFFu
#define NEXT_RING 0xFFFFFFFEu
#define DRY HEAD /* bytes of the words that an end reads which is to find nothing more */

enum { TAIL_WORD, BASE_WORD, HEAD_WORD = 8 };

typedef struct { /* either end */
    PyObject_HEAD
    Py_buffer memory; /* keeps it mapped */
    PyObject *view;   /* of the memory, which the receiver's payloads are parts of */
    uint8_t *frames;
    uint64_t *words;
    uint64_t capacity, tail, head, next;
    char left;
    uint64_t dry[DRY / 8];
} Ring;

typedef struct {
    uint64_t start, size; /* of the frame, in the ring */
    const uint8_t *header, *payload;
    uint32_t header_nbytes, nbytes;
} Frame;

static PyObject *bad_frame; /* the class */

static inline uint64_t lines(uint64_t nbytes) { return (nbytes + LINE - 1) & ~(uint64_t)(LINE - 1); }

static inline int torn(const char *how, uint64_t a, uint64_t b) {
    PyErr_Format(bad_frame, how, (unsigned long long)a, (unsigned long long)b);
    return -1;
}

static inline void put_prefix(uint8_t *at, uint32_t header_nbytes, uint32_t nbytes) {
    uint32_t prefix[2] = {header_nbytes, nbytes};
    memcpy(at, prefix, sizeof prefix);
}

/* The sender looks how far the receiver has come. */
static inline int look_at_head(Ring *ring) {
    uint64_t head = __atomic_load_n(&ring->words[HEAD_WORD], __ATOMIC_ACQUIRE);
    if (head > ring->tail) return torn("torn ring: it was read up to %llu of %llu B", head, ring->tail);
    if (head > ring->head) ring->head = head;
    return 0;
}

/* Find room for a frame of `size` bytes, and go there. 1: there is some; 0: there is none; -1: an error is set. */
static inline int make_room(Ring *ring, uint64_t size) {
    uint64_t place = ring->tail % ring->capacity;
    if (place <= NEAR && place + size + LINE <= ring->capacity && ring->tail + size + LINE - ring->head <= ring->capacity) return 1;
    if (look_at_head(ring)) return -1;
    uint64_t used = ring->tail - ring->head, rest = ring->capacity - place;
    uint64_t lost = used && size + LINE > rest ? rest : 0;
    if (used + lost + size + LINE > ring->capacity) return 0; /* a line is kept free for the last mark */
    if (lost) {
        put_prefix(ring->frames + place, TO_THE_START, 0);
        ring->tail += rest;
    } else if (used == 0 && place) {
        ring->tail = ring->head = ring->tail + rest;
        __atomic_store_n(&ring->words[BASE_WORD], ring->tail, __ATOMIC_RELEASE);
    }
    return 1;
}

/* Put a frame into the ring. 1: it is there; 0: there is no room; -1: an error is set. */
static inline int put_frame(Ring *ring, const void *header, uint64_t header_nbytes, const void *payload, uint64_t nbytes) {
    uint64_t start = lines(8 + header_nbytes), size = start + lines(nbytes);
    int room = nbytes < NEXT_RING ? make_room(ring, size) : 0;
    if (room < 1) return room;
    uint8_t *at = ring->frames + ring->tail % ring->capacity;
    put_prefix(at, (uint32_t)header_nbytes, (uint32_t)nbytes);
    memcpy(at + 8, header, header_nbytes);
    memcpy(at + start, payload, nbytes);
    ring->tail += size;
    __atomic_store_n(&ring->words[TAIL_WORD], ring->tail, __ATOMIC_RELEASE);
    return 1;
}

/* Read nothing more, whatever the sender writes. */
static inline void run_dry(Ring *ring) {
    ring->words = ring->dry;
    ring->words[TAIL_WORD] = ring->tail = ring->next;
}

static inline int has_more(const Ring *ring) {
    return ring->next != ring->tail || __atomic_load_n(&ring->words[TAIL_WORD], __ATOMIC_ACQUIRE) != ring->tail;
}

/* The receiver looks how far the sender has come. 1: there is something new; 0: there is not; -1: an error is set. */
static inline int look_at_tail(Ring *ring) {
    uint64_t tail = __atomic_load_n(&ring->words[TAIL_WORD], __ATOMIC_ACQUIRE);
    if (tail == ring->tail) return 0;
    uint64_t base = __atomic_load_n(&ring->words[BASE_WORD], __ATOMIC_RELAXED);
    if (base > ring->next && base % ring->capacity == 0 && ring->next == ring->head) ring->next = ring->head = base;
    if (tail <= ring->next || tail > ring->head + ring->capacity || tail % LINE) {
        PyErr_Format(bad_frame, "torn ring: written up to %llu B after %llu of %llu B", (unsigned long long)tail,
                     (unsigned long long)ring->next, (unsigned long long)ring->capacity);
        return -1;
    }
    ring->tail = tail;
    return 1;
}

/* Go where a mark says. */
static inline int follow(Ring *ring, uint32_t mark) {
    uint64_t next = ring->next + (mark == TO_THE_START ? ring->capacity - ring->next % ring->capacity : LINE);
    if (next > ring->tail || (mark == NEXT_RING && next != ring->tail))
        return torn("torn ring: goes on at %llu of %llu B", next, ring->tail);
    ring->next = next;
    if (mark == NEXT_RING) ring->left = 1, run_dry(ring);
    return 0;
}

/* Where the next frame lies, which `ring->next` stays before. 1: there is one; 0: there is none; -1: an error is set. */
static inline int find_frame(Ring *ring, Frame *frame) {
    uint32_t prefix[2];
    uint64_t place;
    for (;;) {
        int more = ring->next == ring->tail ? look_at_tail(ring) : 1;
        if (more < 1) return more;
        place = ring->next % ring->capacity;
        memcpy(prefix, ring->frames + place, sizeof prefix);
        if (prefix[0] < NEXT_RING) break;
        if (follow(ring, prefix[0])) return -1;
    }
    uint64_t payload = lines(8 + (uint64_t)prefix[0]), size = payload + lines(prefix[1]);
    if (ring->next + size > ring->tail || place + size > ring->capacity) {
        PyErr_Format(bad_frame, "torn ring: frame of %lu + %lu B at %llu of %llu B", (unsigned long)prefix[0],
                     (unsigned long)prefix[1], (unsigned long long)ring->next, (unsigned long long)ring->tail);
        return -1;
    }
    *frame = (Frame){ring->next, size, ring->frames + place + 8, ring->frames + place + payload, prefix[0], prefix[1]};
    return 1;
}

/* Give back the room of what was read. */
static inline void give_back(Ring *ring) {
    ring->head = ring->next;
    __atomic_store_n(&ring->words[HEAD_WORD], ring->next, __ATOMIC_RELEASE);
}

#endif

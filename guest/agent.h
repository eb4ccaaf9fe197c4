/* SPDX-License-Identifier: MIT */
/*
 * The agent's parts and what they promise each other.
 */
#ifndef AGENT_H
#define AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "link_abi.h"

/* A frame in memory, header and payload back to back: one write() sends it. */
struct frame {
	struct link_header header;
	unsigned char payload[LINK_PAYLOAD_MAX];
};

/* Buffers that grew beyond this give their pages back after use. */
#define KEEP_BYTES (64u << 10)

/* crc32.c */
uint32_t crc32_of(const void *data, size_t size);

/* frame.c */
#define READER_BYTES (64u << 10)

/**
 * struct reader - the incoming byte stream
 * @fd: non-blocking
 * @start: first byte not consumed yet
 * @end: one past the last byte read
 * @skipped: bytes that were no frame and have not been reported yet
 * @bytes: the stream
 */
struct reader {
	int fd;
	size_t start;
	size_t end;
	uint64_t skipped;
	unsigned char bytes[READER_BYTES];
};

enum reader_event {
	READER_FRAME, /* a header was consumed; its payload is next */
	READER_NOISE, /* reader.skipped bytes were no frame: report and reset */
	READER_GONE, /* the host closed its end */
};

enum reader_event reader_next(struct reader *r, struct link_header *header);
bool reader_take(struct reader *r, void *to, size_t size);
bool reader_drop(struct reader *r, size_t size);
bool frame_send(int fd, struct frame *frame, size_t length);

/*
 * serve.c: starts the threads that serve and returns.  With a ticket nothing
 * is answered before the request with this id.
 */
void serve(int fd, uint64_t ticket, void (*ready)(void));

/* arena.c */

/**
 * struct arena - memory remote system calls may point into
 * @end: one past its last usable byte; the page behind it is not mapped
 */
struct arena {
	unsigned char *end;
};

/**
 * struct arena_use - what one request wants of it, in the request's own words
 * @size: bytes
 * @filled: bytes of initial contents
 * @relocs: how many struct link_reloc
 * @out_start: first byte to send back
 * @out_length: bytes to send back
 * @start: the first byte, once it is laid out
 */
struct arena_use {
	uint32_t size;
	uint32_t filled;
	uint32_t relocs;
	uint32_t out_start;
	uint32_t out_length;
	unsigned char *start;
};

bool arena_map(struct arena *arena);
bool arena_fits(const struct arena_use *use, uint64_t before, size_t length,
		uint64_t answer);
bool arena_lay_out(const struct arena *arena, struct arena_use *use,
		   const unsigned char *relocs, uint64_t *args);
void arena_done(const struct arena_use *use);

/* remote.c */
int64_t remote_make(uint64_t number, const uint64_t args[6]);
enum link_status remote_call(const struct arena *arena, const struct frame *in,
			     size_t length, int link_fd, struct frame *out,
			     size_t *out_length);

/* batch.c */
enum link_status batch_call(const struct arena *arena, const struct frame *in,
			    size_t length, int link_fd, struct frame *out,
			    size_t *out_length);

/* policy.c */
bool policy_forbids(uint64_t number, const uint64_t args[6], int link_fd);
enum link_status policy_before(uint64_t number, const uint64_t args[6],
			       int link_fd);
void policy_after(uint64_t number, const uint64_t args[6], int64_t result);

/* boot.c */
_Noreturn void power_off(void);
_Noreturn void boot_failed(const char *what, const char *detail, int error);
void boot_limits(void);
void boot_mounts(void);
void boot_modules(void);
bool boot_word(const char *word);

/* port.c: the open port, or -1 when the deadline passed */
int port_open(const char *name, int deadline_ms);

/* peer.c */
void peer_on_fd(int fd);
enum link_status peer_start(const struct frame *in, size_t length,
			    struct frame *out, size_t *out_length);
void peer_reaped(int pid);

/* resume.c */
enum link_status resume(const struct frame *in, size_t length,
			struct link_hello *hello, struct frame *out,
			size_t *out_length);
/* spawn.c */
void spawn_on_fd(int fd);
enum link_status spawn_program(const struct frame *in, size_t length,
			       struct frame *out, size_t *out_length);
void spawn_reaped(int pid, int status);

/* relay.c */
_Noreturn void relay(int port, uint64_t ticket, char *const argv[]);

/* command.c */
_Noreturn void command(const char *mark, char *const argv[]);

/* shell.c */
void shell_start(void);
void shell_reaped(int pid);

#endif /* AGENT_H */

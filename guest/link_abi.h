/* SPDX-License-Identifier: MIT */
/*
 * The frames that travel between the host and the agent.
 *
 * The host reads these layouts out of the built agent's DWARF; nothing here is
 * typed a second time in Python.  Little-endian, as both ends are x86-64.
 *
 * A frame is a header and header.length bytes of payload.  Both ends may have
 * any number of frames in flight; a reply carries its request's id and may
 * overtake another.
 */
#ifndef LINK_ABI_H
#define LINK_ABI_H

#include <stdint.h>

#define LINK_PROTOCOL 2
#define LINK_MAGIC 0x314c4249u /* "IBL1" */
#define LINK_PAYLOAD_MAX (1u << 20)
#define LINK_PORT_NAME "org.iobmd.link"
#define LINK_PEER_PORT_NAME "org.iobmd.peer"
/* The agent writes this line to the console when it starts to serve. */
#define LINK_READY_LINE "iobmd-agent: ready"
/* And this, with the nonce in hexadecimal behind it, after a restore. */
#define LINK_RESTORED_LINE "iobmd-agent: restored"

enum link_limit {
	link_protocol = LINK_PROTOCOL,
	link_magic = LINK_MAGIC,
	link_payload_max = LINK_PAYLOAD_MAX,
};

enum link_op {
	/* The agent's own: answered by the thread that reads the port. */
	LINK_PING = 1, /* payload comes back as it is */
	LINK_HELLO = 2, /* empty -> struct link_hello */
	/* Executed by a worker. */
	LINK_SYSCALL =
		3, /* struct link_syscall ... -> struct link_syscall_result ... */
	/* Unasked, id 0: bytes on the port that were no frame. */
	LINK_NOISE = 4, /* -> struct link_noise */
	/* Executed by a worker: a new peer process in place of the last one. */
	LINK_PEER = 5, /* struct link_peer_start -> struct link_peer */
	/* Executed by a worker: system calls one after the other. */
	LINK_BATCH =
		7, /* struct link_batch ... -> struct link_batch_result ... */
	/* The agent's own again. */
	LINK_HOLD = 6, /* struct link_hold -> empty */
	LINK_RESUME = 9, /* struct link_resume -> struct link_resumed */
	/* Executed by a worker: start a program, or ask after one. */
	LINK_SPAWN = 8, /* struct link_spawn, strings -> struct link_spawned */
};

enum link_flag {
	LINK_REPLY = 1,
};

enum link_status {
	LINK_OK = 0,
	LINK_UNKNOWN_OP = 1, /* no such op in this agent */
	LINK_MALFORMED = 2, /* the payload contradicts itself */
	LINK_TOO_BIG =
		3, /* header.length over LINK_PAYLOAD_MAX; the payload was skipped */
	LINK_REFUSED = 4, /* would end or fork the agent */
	LINK_NO_MEMORY = 5, /* the guest has no room for this request */
	LINK_DESYNCHRONISED = 6, /* with LINK_NOISE */
};

/**
 * struct link_header - starts every frame, 32 bytes
 * @magic: LINK_MAGIC
 * @length: payload bytes that follow
 * @id: chosen by the requester, never 0
 * @op: enum link_op
 * @flags: enum link_flag bits
 * @status: enum link_status in a reply, 0 in a request
 * @reserved: 0
 * @check: CRC-32 (IEEE 802.3, as zlib's) of the 28 bytes before it
 */
struct link_header {
	uint32_t magic;
	uint32_t length;
	uint64_t id;
	uint16_t op;
	uint16_t flags;
	uint32_t status;
	uint32_t reserved;
	uint32_t check;
};

/**
 * struct link_hello - who answers
 * @protocol: LINK_PROTOCOL of the agent
 * @workers: requests it executes at once
 * @payload_max: LINK_PAYLOAD_MAX of the agent
 * @pid: the agent's process id (1 in a guest)
 * @boot_nonce: drawn once when the agent started; tells a boot from a restore
 * @restore_nonce: of the last LINK_RESUME; zero since a boot
 * @page_size: bytes
 * @release: uname -r
 */
struct link_hello {
	uint32_t protocol;
	uint32_t workers;
	uint32_t payload_max;
	uint32_t pid;
	uint8_t boot_nonce[16];
	uint8_t restore_nonce[16];
	uint64_t page_size;
	char release[72];
};

/**
 * struct link_syscall - execute one system call
 * @number: x86-64 system call number
 * @args: its six arguments, before relocation
 * @relocs: how many struct link_reloc follow this structure
 * @filled: how many bytes of initial arena contents follow the relocs
 * @arena: size of the arena; bytes from @filled on start as zero
 * @out_start: first arena byte to send back
 * @out_length: number of arena bytes to send back
 * @reserved: 0
 *
 * The arena is scratch memory of the agent that lives for this request.  Each
 * reloc stores the address of an arena byte into an argument or into the arena
 * itself, so a structure with pointers in it can be built by the host.
 */
struct link_syscall {
	uint64_t number;
	uint64_t args[6];
	uint32_t relocs;
	uint32_t filled;
	uint32_t arena;
	uint32_t out_start;
	uint32_t out_length;
	uint32_t reserved;
};

enum link_reloc_kind {
	LINK_RELOC_ARG = 0, /* place is an index into args */
	LINK_RELOC_ARENA =
		1, /* place is the offset of a uint64_t in the arena */
};

struct link_reloc {
	uint32_t kind;
	uint32_t place;
	uint32_t target; /* arena offset whose address is stored */
	uint32_t reserved;
};

/**
 * struct link_syscall_result - what it returned
 * @result: the raw value; -4095..-1 is a negated errno
 *
 * Followed by the arena window that was asked for.
 */
struct link_syscall_result {
	int64_t result;
};

enum link_batch_flag {
	/* make no more calls after one that failed */
	LINK_BATCH_STOP = 1,
};

/**
 * struct link_batch - execute system calls in order, by one thread
 * @calls: how many struct link_batch_call follow this structure
 * @relocs: how many struct link_reloc follow the calls, LINK_RELOC_ARENA only
 * @filled: how many bytes of initial arena contents follow the relocs
 * @arena: size of the arena, which all calls share; see struct link_syscall
 * @out_start: first arena byte to send back
 * @out_length: number of arena bytes to send back
 * @flags: enum link_batch_flag bits
 * @reserved: 0
 *
 * The request is malformed as a whole or sound as a whole, and refused as a
 * whole where the host could have known: for a call with no loaded argument.
 */
struct link_batch {
	uint32_t calls;
	uint32_t relocs;
	uint32_t filled;
	uint32_t arena;
	uint32_t out_start;
	uint32_t out_length;
	uint32_t flags;
	uint32_t reserved;
};

/**
 * struct link_batch_call - one of the calls
 * @number: x86-64 system call number
 * @args: its six arguments; for some of them an arena offset
 * @arena_args: bit k: the address of the arena byte @args[k] is passed
 * @load_args: bit k: the int32_t that lies at arena offset @args[k] when the
 *	call is made is passed, sign-extended; a descriptor, for instance, that
 *	a call before this one has put there
 */
struct link_batch_call {
	uint64_t number;
	uint64_t args[6];
	uint32_t arena_args;
	uint32_t load_args;
};

/**
 * struct link_batch_result - how far it got
 * @made: calls that were made, from the first one on
 * @status: LINK_OK; else the enum link_status for which call number @made was
 *	not made, and none after it
 *
 * Followed by an int64_t for each call of the request, the raw value, 0 for
 * calls that were not made; then by the arena window that was asked for.
 */
struct link_batch_result {
	uint32_t made;
	uint32_t status;
};

/**
 * struct link_noise - bytes that were no frame
 * @skipped: how many were dropped before the next frame (or so far)
 */
struct link_noise {
	uint64_t skipped;
};

/**
 * struct link_peer_start - end the peer process, if there is one; start another
 * @ticket: not 0; the id of the first request the new one listens to
 *
 * Its port may still hold requests to the one before, whole or cut in two.
 * The new peer drops every byte up to the header with this id.
 */
struct link_peer_start {
	uint64_t ticket;
};

/**
 * struct link_peer - the peer process
 * @pid: its process id, 0 if it could not be started
 * @error: 0, or the errno that prevented it; EBUSY: the last one does not end
 */
struct link_peer {
	uint32_t pid;
	int32_t error;
};

/**
 * struct link_hold - a snapshot of the machine follows
 * @ticket: not 0; the id of the first request that counts from now on
 *
 * A machine that is put back to the snapshot may still have bytes on their way
 * to the agent from the life before.  The agent drops everything up to the
 * header with this id, which nobody used in that life after its first request.
 */
struct link_hold {
	uint64_t ticket;
};

/**
 * struct link_resume - the machine was put back to a snapshot
 * @nonce: fresh; also feeds the kernel's random numbers, alike in every restore
 * @realtime_ns: the host's time since 1970; the guest's clock is set to it
 */
struct link_resume {
	uint8_t nonce[16];
	int64_t realtime_ns;
};

/**
 * struct link_resumed - the proof that it was
 * @boot_nonce: as in struct link_hello: the same as when the snapshot was made
 * @restore_nonce: the request's
 * @monotonic_ns: CLOCK_MONOTONIC, which goes on where the snapshot was made
 * @realtime_ns: CLOCK_REALTIME, after it was set
 * @error: 0, or the errno of a clock that cannot be set or an entropy pool
 *	that takes nothing
 * @reserved: 0
 */
struct link_resumed {
	uint8_t boot_nonce[16];
	uint8_t restore_nonce[16];
	int64_t monotonic_ns;
	int64_t realtime_ns;
	int32_t error;
	uint32_t reserved;
};

/**
 * struct link_spawn - start a program of the guest, or ask after one
 * @ticket: with a port random, its first byte not 0; without one 0
 * @pid: 0 to start; otherwise a process this operation started: tell its state
 * @argc: how many strings are its argv; the first is the program's path
 * @envc: how many strings after those are its environment
 * @reserved: 0
 * @port: name of the virtio-serial port that becomes its standard input and
 *	output, "" for none
 * @log: file its other standard streams are appended to, "" for the console
 *
 * Followed by @argc + @envc strings, each with its NUL.
 *
 * With a port: the process started with this port before is ended first.  What
 * the port still holds of that one's input is dropped up to and including the
 * eight bytes of @ticket, in memory order; the same eight bytes are the first
 * output.  In between is a relay, whose process id is the answer: the program
 * sees a stream socket, and the relay ends with the program, as the program
 * ends with the relay.
 */
struct link_spawn {
	uint64_t ticket;
	uint32_t pid;
	uint32_t argc;
	uint32_t envc;
	uint32_t reserved;
	char port[64];
	char log[128];
};

/**
 * struct link_spawned - how that process is
 * @pid: its process id, 0 if it could not be started
 * @error: 0, or the errno that prevented the start; ESRCH: no such process is
 *	remembered; EBUSY: the last one on this port does not end; EAGAIN: as
 *	many as can be remembered are running
 * @ended: 1 when it has ended, else 0
 * @status: its exit status, or 128 and the number of the signal that ended it
 */
struct link_spawned {
	uint32_t pid;
	int32_t error;
	uint32_t ended;
	uint32_t status;
};

#endif /* LINK_ABI_H */

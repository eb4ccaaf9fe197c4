// SPDX-License-Identifier: MIT
/*
 * LINK_BATCH: system calls one after the other, on behalf of the host.
 *
 * All of them are checked before the first is made.  What a call loads is known
 * only when its turn comes, and so is what it may do with it: a call that turns
 * out to be forbidden ends the batch there, and the host gets the results of
 * those before it, descriptors among them.
 */
#include <string.h>

#include "agent.h"

#define ARGS 6
#define ERRNO_MAX 4095

struct batch {
	struct link_batch head;
	const unsigned char *calls;
	struct arena_use use;
	int link_fd;
};

/* Payloads are bytes; the compiler makes plain loads of this. */
static struct link_batch_call call_at(const struct batch *b, uint32_t index)
{
	struct link_batch_call call;

	memcpy(&call, b->calls + index * sizeof(call), sizeof(call));
	return call;
}

static int32_t load(const struct arena_use *use, uint64_t offset)
{
	int32_t value;

	memcpy(&value, use->start + offset, sizeof(value));
	return value;
}

/* Offsets become what they stand for. */
static void resolve(const struct arena_use *use, struct link_batch_call *call)
{
	for (unsigned int k = 0; k < ARGS; k++) {
		if (call->arena_args >> k & 1)
			call->args[k] = (uintptr_t)(use->start + call->args[k]);
		else if (call->load_args >> k & 1)
			call->args[k] =
				(uint64_t)(int64_t)load(use, call->args[k]);
	}
}

/* An address may be one past the end: that of an empty buffer. */
static bool sound(const struct link_batch_call *call, uint32_t arena)
{
	if (call->arena_args & call->load_args ||
	    (call->arena_args | call->load_args) >> ARGS)
		return false;
	for (unsigned int k = 0; k < ARGS; k++) {
		uint64_t offset = call->args[k];

		if (call->arena_args >> k & 1 && offset > arena)
			return false;
		if (call->load_args >> k & 1 &&
		    (arena < sizeof(int32_t) ||
		     offset > arena - sizeof(int32_t)))
			return false;
	}
	return true;
}

static enum link_status check_calls(const struct batch *b)
{
	enum link_status status = LINK_OK;

	for (uint32_t i = 0; i < b->head.calls; i++) {
		struct link_batch_call call = call_at(b, i);

		if (!sound(&call, b->use.size))
			return LINK_MALFORMED;
		if (call.load_args)
			continue;
		resolve(&b->use, &call);
		if (policy_forbids(call.number, call.args, b->link_fd))
			status = LINK_REFUSED;
	}
	return status;
}

static enum link_status take_in(struct batch *b, const struct arena *arena,
				const struct frame *in, size_t length)
{
	struct link_batch *head = &b->head;
	uint64_t before, answer;

	if (length < sizeof(*head))
		return LINK_MALFORMED;
	memcpy(head, in->payload, sizeof(*head));
	b->calls = in->payload + sizeof(*head);
	b->use = (struct arena_use){
		.size = head->arena,
		.filled = head->filled,
		.relocs = head->relocs,
		.out_start = head->out_start,
		.out_length = head->out_length,
	};
	before = sizeof(*head) +
		 (uint64_t)head->calls * sizeof(struct link_batch_call);
	answer = sizeof(struct link_batch_result) +
		 (uint64_t)head->calls * sizeof(int64_t);
	if (head->reserved || head->flags & ~(uint32_t)LINK_BATCH_STOP ||
	    !arena_fits(&b->use, before, length, answer) ||
	    !arena_lay_out(arena, &b->use, in->payload + before, NULL))
		return LINK_MALFORMED;
	return check_calls(b);
}

/* Calls from the first on; @results has room for all and is zero. */
static struct link_batch_result make(const struct batch *b,
				     unsigned char *results)
{
	struct link_batch_result answer = { 0, LINK_OK };

	while (answer.made < b->head.calls) {
		struct link_batch_call call = call_at(b, answer.made);
		int64_t result;

		resolve(&b->use, &call);
		answer.status =
			policy_before(call.number, call.args, b->link_fd);
		if (answer.status != LINK_OK)
			break;
		result = remote_make(call.number, call.args);
		memcpy(results + answer.made * sizeof(result), &result,
		       sizeof(result));
		answer.made++;
		if (b->head.flags & LINK_BATCH_STOP && result < 0 &&
		    result >= -ERRNO_MAX)
			break;
	}
	return answer;
}

enum link_status batch_call(const struct arena *arena, const struct frame *in,
			    size_t length, int link_fd, struct frame *out,
			    size_t *out_length)
{
	struct batch b = { .link_fd = link_fd };
	enum link_status status = take_in(&b, arena, in, length);
	struct link_batch_result answer;
	unsigned char *results = out->payload + sizeof(answer);
	size_t size = b.head.calls * sizeof(int64_t);

	if (status != LINK_OK)
		return status;
	memset(results, 0, size);
	answer = make(&b, results);
	memcpy(out->payload, &answer, sizeof(answer));
	memcpy(results + size, b.use.start + b.use.out_start, b.use.out_length);
	*out_length = sizeof(answer) + size + b.use.out_length;
	arena_done(&b.use);
	return LINK_OK;
}

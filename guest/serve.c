// SPDX-License-Identifier: MIT
/*
 * Leader and followers.
 *
 * One thread reads the port.  It answers the agent's own operations itself,
 * so an echo costs one read and one write and wakes nobody.  Before it runs an
 * operation, which may never return, it passes the reading on to an idle
 * thread; there is one thread more than operations that may run at once, so
 * pings are answered with every worker stuck in the kernel.  What then arrives
 * waits in a bounded queue.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "agent.h"

#define WORKERS 16
#define QUEUE_BYTES (8u << 20)

struct job {
	struct job *next;
	struct link_header header;
	unsigned char payload[];
};

struct worker {
	struct frame *in;
	struct frame *out;
	struct arena arena;
};

static struct {
	struct reader reader;
	struct link_hello hello;
	uint64_t ticket; /* the reader's: nothing counts before this id */
	pthread_mutex_t write_lock;
	/* Everything below is under this lock. */
	pthread_mutex_t lock;
	pthread_cond_t wanted;
	bool reading; /* some thread reads the port */
	unsigned int idle; /* threads waiting for something to do */
	struct job *first;
	struct job **last;
	size_t queued; /* bytes in the queue */
} server = {
	.write_lock = PTHREAD_MUTEX_INITIALIZER,
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.wanted = PTHREAD_COND_INITIALIZER,
	.last = &server.first,
};

/* A guest does not outlive its host. */
static _Noreturn void host_gone(void)
{
	if (getpid() == 1)
		power_off();
	_exit(0);
}

static void *map_or_die(size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		abort();
	return at;
}

static void trim(struct frame *frame, size_t used)
{
	if (used > KEEP_BYTES)
		madvise(frame, sizeof(*frame), MADV_DONTNEED);
}

static void reply(struct frame *out, const struct link_header *to,
		  enum link_status status, size_t length)
{
	bool sent;

	out->header.id = to->id;
	out->header.op = to->op;
	out->header.flags = LINK_REPLY;
	out->header.status = status;
	pthread_mutex_lock(&server.write_lock);
	sent = frame_send(server.reader.fd, out, length);
	pthread_mutex_unlock(&server.write_lock);
	if (!sent)
		host_gone();
}

static void report_noise(struct frame *out, uint64_t skipped)
{
	const struct link_header unasked = { .op = LINK_NOISE };
	const struct link_noise noise = { .skipped = skipped };

	memcpy(out->payload, &noise, sizeof(noise));
	reply(out, &unasked, LINK_DESYNCHRONISED, sizeof(noise));
}

static void run(struct worker *me, size_t length)
{
	size_t out_length = 0;
	enum link_status status;

	if (me->in->header.op == LINK_PEER)
		status = peer_start(me->in, length, me->out, &out_length);
	else if (me->in->header.op == LINK_BATCH)
		status = batch_call(&me->arena, me->in, length,
				    server.reader.fd, me->out, &out_length);
	else if (me->in->header.op == LINK_SPAWN)
		status = spawn_program(me->in, length, me->out, &out_length);
	else
		status = remote_call(&me->arena, me->in, length,
				     server.reader.fd, me->out, &out_length);

	reply(me->out, &me->in->header, status, out_length);
	trim(me->in, length);
	trim(me->out, out_length);
}

static enum link_status enqueue(const struct frame *in, size_t length)
{
	enum link_status status = LINK_NO_MEMORY;
	size_t size = sizeof(struct job) + length;
	struct job *job;

	pthread_mutex_lock(&server.lock);
	if (server.queued + size <= QUEUE_BYTES) {
		job = malloc(size);
		if (job) {
			job->next = NULL;
			job->header = in->header;
			memcpy(job->payload, in->payload, length);
			*server.last = job;
			server.last = &job->next;
			server.queued += size;
			status = LINK_OK;
			/* A worker may have become idle meanwhile. */
			pthread_cond_signal(&server.wanted);
		}
	}
	pthread_mutex_unlock(&server.lock);
	return status;
}

/* Called with the lock held and a job queued; returns its payload length. */
static size_t dequeue(struct frame *in)
{
	struct job *job = server.first;
	size_t length = job->header.length;

	server.first = job->next;
	if (!server.first)
		server.last = &server.first;
	server.queued -= sizeof(*job) + length;
	in->header = job->header;
	memcpy(in->payload, job->payload, length);
	free(job);
	return length;
}

/* Pass the reading on; false when nobody is idle. */
static bool hand_over(void)
{
	bool handed = false;

	pthread_mutex_lock(&server.lock);
	if (server.idle) {
		server.reading = false;
		pthread_cond_signal(&server.wanted);
		handed = true;
	}
	pthread_mutex_unlock(&server.lock);
	return handed;
}

static bool well_formed(const struct link_header *header)
{
	return header->id && !header->flags && !header->status &&
	       !header->reserved;
}

/* Called by the reader; the answer to this is the last before the ticket. */
static enum link_status hold(const struct frame *in, size_t length)
{
	struct link_hold request;

	if (length != sizeof(request))
		return LINK_MALFORMED;
	memcpy(&request, in->payload, sizeof(request));
	if (!request.ticket)
		return LINK_MALFORMED;
	server.ticket = request.ticket;
	return LINK_OK;
}

/* Answer one frame.  False when this thread is no longer the reader. */
static bool answer(struct worker *me, size_t length)
{
	const struct link_header *asked = &me->in->header;
	enum link_status status = LINK_OK;
	size_t out_length = 0;

	if (!well_formed(asked)) {
		status = LINK_MALFORMED;
	} else if (asked->op == LINK_PING) {
		memcpy(me->out->payload, me->in->payload, length);
		out_length = length;
	} else if (asked->op == LINK_HELLO && length) {
		status = LINK_MALFORMED;
	} else if (asked->op == LINK_HELLO) {
		out_length = sizeof(server.hello);
		memcpy(me->out->payload, &server.hello, out_length);
	} else if (asked->op == LINK_HOLD) {
		status = hold(me->in, length);
	} else if (asked->op == LINK_RESUME) {
		status = resume(me->in, length, &server.hello, me->out,
				&out_length);
	} else if (asked->op != LINK_SYSCALL && asked->op != LINK_PEER &&
		   asked->op != LINK_BATCH && asked->op != LINK_SPAWN) {
		status = LINK_UNKNOWN_OP;
	} else if (hand_over()) {
		run(me, length);
		return false;
	} else {
		status = enqueue(me->in, length);
		if (status == LINK_OK)
			return true;
	}
	reply(me->out, asked, status, out_length);
	trim(me->in, length);
	trim(me->out, out_length);
	return true;
}

/*
 * Is the reader still before the ticket?  What lies there was not meant for
 * this process; payloads are stepped over as noise, as their length may lie.
 */
static bool is_stale(enum reader_event event, const struct link_header *header)
{
	if (!server.ticket)
		return false;
	if (event == READER_FRAME && header->id == server.ticket) {
		server.ticket = 0;
		return false;
	}
	server.reader.skipped = 0;
	return event != READER_GONE;
}

static void lead(struct worker *me)
{
	struct reader *r = &server.reader;
	bool leading = true;

	while (leading) {
		struct link_header *header = &me->in->header;
		enum reader_event event = reader_next(r, header);
		size_t length;

		if (is_stale(event, header))
			continue;
		switch (event) {
		case READER_FRAME:
			break;
		case READER_NOISE:
			report_noise(me->out, r->skipped);
			r->skipped = 0;
			continue;
		case READER_GONE:
			host_gone();
		}
		length = header->length;
		if (length > LINK_PAYLOAD_MAX) {
			if (!reader_drop(r, length))
				host_gone();
			reply(me->out, header, LINK_TOO_BIG, 0);
			continue;
		}
		if (!reader_take(r, me->in->payload, length))
			host_gone();
		leading = answer(me, length);
	}
}

static void *work(void *arg)
{
	struct worker *me = arg;

	pthread_mutex_lock(&server.lock);
	for (;;) {
		if (server.first) {
			size_t length = dequeue(me->in);

			pthread_mutex_unlock(&server.lock);
			run(me, length);
			pthread_mutex_lock(&server.lock);
		} else if (!server.reading) {
			server.reading = true;
			pthread_mutex_unlock(&server.lock);
			lead(me);
			pthread_mutex_lock(&server.lock);
		} else {
			server.idle++;
			pthread_cond_wait(&server.wanted, &server.lock);
			server.idle--;
		}
	}
	return NULL;
}

static void introduce(void)
{
	struct link_hello *hello = &server.hello;
	struct utsname name;

	hello->protocol = LINK_PROTOCOL;
	hello->workers = WORKERS;
	hello->payload_max = LINK_PAYLOAD_MAX;
	hello->pid = (uint32_t)getpid();
	hello->page_size = (uint64_t)sysconf(_SC_PAGESIZE);
	if (!uname(&name))
		strncpy(hello->release, name.release,
			sizeof(hello->release) - 1);
	/* Never blocks: a nonce needs to differ, not to be secret. */
	if (getrandom(hello->boot_nonce, sizeof(hello->boot_nonce),
		      GRND_INSECURE) != sizeof(hello->boot_nonce))
		abort();
}

void serve(int fd, uint64_t ticket, void (*ready)(void))
{
	struct worker *workers = calloc(WORKERS + 1, sizeof(*workers));
	pthread_t thread;

	if (!workers || fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		abort();
	server.reader.fd = fd;
	server.ticket = ticket;
	introduce();
	/*
	 * Nobody reads before everybody is there: all memory of the agent is
	 * mapped before the host maps any.
	 */
	pthread_mutex_lock(&server.lock);
	for (int i = 0; i <= WORKERS; i++) {
		struct worker *me = &workers[i];

		me->in = map_or_die(sizeof(*me->in));
		me->out = map_or_die(sizeof(*me->out));
		if (!arena_map(&me->arena) ||
		    pthread_create(&thread, NULL, work, me))
			abort();
	}
	pthread_mutex_unlock(&server.lock);
	if (ready)
		ready();
}

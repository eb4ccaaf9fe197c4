// SPDX-License-Identifier: MIT
/*
 * The floor of the RPC rows: pid 1 that sends back whatever comes, with no
 * frames, no checksum and no threads.  It boots as the agent does, by the
 * agent's own guest/boot.c and guest/port.c.
 */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "agent.h"

#define DEADLINE_MS 30000

int main(void)
{
	static char bytes[READER_BYTES];
	ssize_t got;
	int port;

	boot_mounts();
	boot_modules();
	port = port_open(LINK_PORT_NAME, DEADLINE_MS);
	if (port < 0)
		boot_failed("no port", LINK_PORT_NAME, ETIMEDOUT);
	dprintf(STDERR_FILENO, "%s\n", LINK_READY_LINE);
	while ((got = read(port, bytes, sizeof(bytes))) > 0)
		for (ssize_t done = 0, n; done < got; done += n)
			if ((n = write(port, bytes + done, got - done)) < 0)
				boot_failed("write", LINK_PORT_NAME, errno);
	power_off();
}

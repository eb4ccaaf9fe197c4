/* SPDX-License-Identifier: GPL-2.0 */
/* Call a factory from places a driver must not call it from. */
#ifndef IOBMD_CONTEXT_H
#define IOBMD_CONTEXT_H

#include "iobmd_abi.h"

struct iobmd_descriptor;

int iobmd_create_in_context(const struct iobmd_create *call,
			    struct iobmd_descriptor **descriptor,
			    const char **reason);

#endif /* IOBMD_CONTEXT_H */

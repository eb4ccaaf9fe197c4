/* SPDX-License-Identifier: MIT */
/*
 * For LD_PRELOAD: QEMU's translator loses the race it may lose.
 *
 * A store to a page with code drops what was translated of it, and lets go of
 * the page's lock, before it is made (accel/tcg/cputlb.c: notdirty_write).
 * Whoever translates in between reads what is about to be overwritten.  The
 * last that QEMU does there is to give back a tree (accel/tcg/tb-maint.c:
 * page_collection_unlock), and it is given time then.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

void g_tree_destroy(void *tree);

void g_tree_destroy(void *tree)
{
	void (*destroy)(void *) =
		(void (*)(void *))dlsym(RTLD_NEXT, "g_tree_destroy");

	destroy(tree);
	usleep(200);
}

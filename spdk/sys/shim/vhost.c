/* vhost-user controllers. */

#include <spdk/stdinc.h>
#include <spdk/json.h>
#include <spdk/vhost.h>

#include "shim.h"

int
opi_vhost_blk_create(const char *name, const char *bdev_name)
{
	/* The transport takes its options as parsed JSON and insists on an object: {}. */
	struct spdk_json_val object[] = {
		{ .type = SPDK_JSON_VAL_OBJECT_BEGIN },
		{ .type = SPDK_JSON_VAL_OBJECT_END },
	};

	return spdk_vhost_blk_construct(name, NULL, bdev_name, NULL, object);
}

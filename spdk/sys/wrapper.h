/* The headers that bindgen reads. build/allowlist.rs lists what is kept of them. */
#include <rte_log.h>
#include <spdk/stdinc.h>
#include <spdk/bdev.h>
#include <spdk/bdev_module.h>
#include <spdk/env.h>
#include <spdk/event.h>
#include <spdk/init.h>
#include <spdk/log.h>
#include <spdk/notify.h>
#include <spdk/nvme.h>
#include <spdk/nvmf.h>
#include <spdk/thread.h>
#include <spdk/uuid.h>

#include "shim.h"

--- Constants of the first seed's `msys.core`.
---@class msys.core
local core = {
  --- Run a completion in the pool, on the job's own OS thread.
  ECTP_COMPLETE_CALLBACK = 3,
  --- Run a completion on the submitter's scheduler.
  ECTP_COMPLETE_CALLBACK_SCHED = 6,
}

return core

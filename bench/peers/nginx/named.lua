--- What nginx's threads call: `ngx.run_worker_thread` takes functions of modules by their names.
local jobs = require "bench.peers.jobs"

return {
  echo = function(i)
    return i
  end,
  short = jobs.short,
  numeric = jobs.numeric,
  tables = jobs.tables,
}

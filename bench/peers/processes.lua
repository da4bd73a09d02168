--- By how many times two processes of plain LuaJIT are as fast as one: what bounds the speed-up of two workers.
---
--- `luajit bench/peers/processes.lua <row>` prints it. With a time behind, it is one of the two, which begins then.

local jobs = require "bench.peers.jobs"
local now = require("bench.measure").now

local row, begins = arg[1], tonumber(arg[2])
local count = jobs.COUNT[row] / 2

if begins then
  local fn = jobs[row]
  for i = 1, 20 do
    fn(i)
  end
  local late = now() > begins
  while now() < begins do
  end
  for i = 1, count do
    fn(i)
  end
  print(late and "late" or ("%.6f"):format(now()))
  return
end

local inline = jobs.inline(row, now)
begins = now() + 1
local ended = 0
local pipes = {}
for place = 1, 2 do
  pipes[place] = assert(io.popen(("luajit bench/peers/processes.lua %s %.6f"):format(row, begins)))
end
for _, pipe in ipairs(pipes) do
  local its_end = assert(tonumber(pipe:read "*l"), "a process began late")
  ended = math.max(ended, its_end)
  pipe:close()
end
print(("%.6g"):format(inline / (ended - begins)))

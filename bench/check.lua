--- Instructions a job, counted by valgrind's callgrind: repeatable, whatever else the machine does.
---
--- `make bench-check` fails where one is more than 5 % above what bench/instructions.txt has;
--- `luajit bench/check.lua record` writes that file.

local RECORD = "bench/instructions.txt"
local MOST = 1.05
--- What is counted is the difference between these, by its number of jobs; the least of so many rounds, since when the
--- collector runs is chance.
local FEW, MANY, ROUNDS = 2000, 22000, 3

local function read(path)
  local file = io.open(path)
  if not file then return nil end
  local text = file:read "*a"
  file:close()
  return text
end

--- Instructions of the host's thread and of all others.
local function count(kind, jobs)
  local folder = os.tmpname()
  os.remove(folder)
  assert(os.execute("mkdir " .. folder) == 0)
  local command = ("valgrind --tool=callgrind --separate-threads=yes --callgrind-out-file=%s/out"):format(
    folder
  ) .. (" luajit -joff bench/count.lua %s %d >%s/log 2>&1"):format(kind, jobs, folder)
  if os.execute(command) ~= 0 then
    io.stderr:write(read(folder .. "/log") or "", "bench/check.lua: that has failed: ", command, "\n")
    os.exit(1)
  end
  local host, others = 0, 0
  local list = io.popen("ls " .. folder .. "/out-*")
  for path in list:lines() do
    local total = tonumber(read(path):match "\ntotals: (%d+)" or read(path):match "\nsummary: (%d+)")
    if path:find "%-01$" then
      host = total
    else
      others = others + (total or 0)
    end
  end
  list:close()
  os.execute("rm -r " .. folder)
  return host, others
end

--- The names of the figures, in order, and the figures.
local order, figures = {}, {}
for _, kind in ipairs { "async", "completed", "waited" } do
  for _ = 1, ROUNDS do
    local host_few, others_few = count(kind, FEW)
    local host_many, others_many = count(kind, MANY)
    for where, difference in pairs { host = host_many - host_few, worker = others_many - others_few } do
      local name = kind .. " " .. where
      if not figures[name] then order[#order + 1] = name end
      figures[name] = math.min(figures[name] or math.huge, math.floor(difference / (MANY - FEW) + 0.5))
    end
  end
end
table.sort(order)

if arg[1] == "record" then
  local file = assert(io.open(RECORD, "w"))
  file:write "# Instructions a job, by `luajit bench/check.lua record`. See bench/check.lua.\n"
  for _, name in ipairs(order) do
    file:write(name, " ", figures[name], "\n")
  end
  file:close()
end

local recorded = {}
for name, value in (read(RECORD) or ""):gmatch "\n(%a+ %a+) (%d+)" do
  recorded[name] = tonumber(value)
end
local failed = false
print "| instructions a job | counted | recorded |  |"
print "|---|---|---|---|"
for _, name in ipairs(order) do
  local before = recorded[name]
  local is_more = not before or figures[name] > before * MOST
  failed = failed or is_more
  print(
    ("| %s | %d | %s | %s |"):format(
      name,
      figures[name],
      before or "–",
      before and ("%+.1f %%%s"):format((figures[name] / before - 1) * 100, is_more and ", too many" or "")
        or "new"
    )
  )
end
if failed then
  print "\nbench-check: a job costs over 5 % more than recorded (bench/instructions.txt)"
  os.exit(1)
end

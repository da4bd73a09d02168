--- Pictures (SVG) of benchmarks.

local measure = require "bench.measure"

local chart = {}

--- The first bar's, and that of the others.
local OURS, THEIRS = "#1f77b4", "#b0b0b0"

local function escaped(text)
  return (text:gsub("[&<>]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;" }))
end

local function write(path, width, height, parts)
  local file = assert(io.open(path, "w"))
  file:write(
    ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" '):format(
      width,
      height,
      width,
      height
    ),
    'font-family="sans-serif" font-size="13">\n',
    '<rect width="100%" height="100%" fill="white"/>\n',
    table.concat(parts, "\n"),
    "\n</svg>\n"
  )
  file:close()
end

local function text(x, y, what, attributes)
  return ('<text x="%.1f" y="%.1f" %s>%s</text>'):format(x, y, attributes or "", escaped(what))
end

--- Groups of horizontal bars, each group with a scale of its own.
---@param path string
---@param groups { title: string, bars: { [1]: string, [2]: number }[] }[]
function chart.bars(path, groups)
  local WIDTH, LEFT, RIGHT, BAR = 640, 90, 90, 20
  local parts, y = {}, 10
  for _, group in ipairs(groups) do
    parts[#parts + 1] = text(10, y + 15, group.title, 'font-weight="bold"')
    y = y + 24
    local most = 0
    for _, bar in ipairs(group.bars) do
      most = math.max(most, bar[2])
    end
    for place, bar in ipairs(group.bars) do
      local length = (WIDTH - LEFT - RIGHT) * bar[2] / most
      parts[#parts + 1] = text(LEFT - 8, y + 14, bar[1], 'text-anchor="end"')
      parts[#parts + 1] = ('<rect x="%d" y="%.1f" width="%.1f" height="%d" fill="%s"/>'):format(
        LEFT,
        y + 2,
        math.max(length, 1),
        BAR - 4,
        place == 1 and OURS or THEIRS
      )
      parts[#parts + 1] = text(LEFT + length + 6, y + 14, measure.short(bar[2]))
      y = y + BAR
    end
    y = y + 12
  end
  write(path, WIDTH, y, parts)
end

return chart

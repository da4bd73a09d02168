--- Pictures (SVG) of benchmarks.

local measure = require "bench.measure"

local chart = {}

--- The first bar's, and that of the others.
local OURS, THEIRS = "#1f77b4", "#b0b0b0"
local LINES = { OURS, "#ff7f0e", "#2ca02c" }

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

--- Lines over a common axis.
---@param path string
---@param title string
---@param across string  what the axis is
---@param lines { name: string, points: { [1]: number, [2]: number }[] }[]
---@param logarithmic? boolean  the axis
function chart.lines(path, title, across, lines, logarithmic)
  local WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 640, 320, 60, 40, 50, 160
  local at = logarithmic and math.log or function(x)
    return x
  end
  local least_x, most_x, most_y = math.huge, -math.huge, 0
  local marks = {}
  for _, line in ipairs(lines) do
    for _, point in ipairs(line.points) do
      least_x, most_x = math.min(least_x, at(point[1])), math.max(most_x, at(point[1]))
      most_y = math.max(most_y, point[2])
      marks[point[1]] = true
    end
  end
  local function x_of(x)
    return LEFT + (WIDTH - LEFT - RIGHT) * (at(x) - least_x) / math.max(most_x - least_x, 1e-9)
  end
  local function y_of(y)
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / most_y
  end
  local parts = { text(10, 22, title, 'font-weight="bold"') }
  for step = 0, 4 do
    local y = most_y * step / 4
    parts[#parts + 1] = ('<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#dddddd"/>'):format(
      LEFT,
      y_of(y),
      WIDTH - RIGHT,
      y_of(y)
    )
    parts[#parts + 1] = text(LEFT - 6, y_of(y) + 4, measure.short(y), 'text-anchor="end"')
  end
  for x in pairs(marks) do
    parts[#parts + 1] = text(x_of(x), HEIGHT - BOTTOM + 18, ("%g"):format(x), 'text-anchor="middle"')
  end
  parts[#parts + 1] = text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, across, 'text-anchor="middle"')
  for place, line in ipairs(lines) do
    local points = {}
    for _, point in ipairs(line.points) do
      points[#points + 1] = ("%.1f,%.1f"):format(x_of(point[1]), y_of(point[2]))
    end
    local colour = LINES[(place - 1) % #LINES + 1]
    parts[#parts + 1] = ('<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>'):format(
      table.concat(points, " "),
      colour
    )
    parts[#parts + 1] = text(WIDTH - RIGHT + 10, TOP + 20 * place, line.name, ('fill="%s"'):format(colour))
  end
  write(path, WIDTH, HEIGHT, parts)
end

return chart

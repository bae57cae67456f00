-- Health of an AgentSchedule: Suspended while `suspend` is set, as of a CronJob. What becomes of its runs is theirs to show,
-- but for a failed one that has paused it.
-- Argo CD gives a check Lua 5.1's base and table functions, and no string library.
local passes_by_itself = { Pending = true, QuotaExceeded = true, ScheduleFailed = true }

local status = obj.status or {}
local ready = {}
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" then
    ready = condition
  end
end

if ready.status == nil or (status.observedGeneration or -1) < (obj.metadata.generation or 1) then
  return { status = "Progressing", message = "Waiting for the controller" }
end
local health = "Progressing"
if ready.status == "True" and ready.reason == "Suspended" then
  health = "Suspended"
elseif ready.status == "True" then
  health = "Healthy"
elseif ready.status == "False" and not passes_by_itself[ready.reason] then
  health = "Degraded"
end
return { status = health, message = ready.reason .. ": " .. ready.message }

-- Health of an AgentApproval: Suspended while it waits for a human. What came of the decision is history, and Healthy.
-- Argo CD gives a check Lua 5.1's base and table functions, and no string library.
local is_history = { Applied = true, Expired = true, Superseded = true }

local status = obj.status or {}
local ready = {}
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" then
    ready = condition
  end
end

if status.state == nil or ready.status == nil then
  return { status = "Progressing", message = "Waiting for the controller" }
end
local message = ready.reason .. ": " .. ready.message
if is_history[status.state] then
  return { status = "Healthy", message = message }
end
if status.state == "Pending" and obj.spec.decision == nil then
  local approval = "agentapproval " .. obj.metadata.name .. " -n " .. obj.metadata.namespace
  return {
    status = "Suspended",
    message = obj.spec.question
      .. "\nkubectl describe " .. approval
      .. "\nkubectl patch " .. approval .. [[ --type merge -p '{"spec":{"decision":"Approve"}}']],
  }
end
-- Decided, and refused until somebody mends something: PolicyMissing, InvalidSpec.
if status.state == "Pending" and ready.reason ~= "Pending" then
  return { status = "Degraded", message = message }
end
return { status = "Progressing", message = message }

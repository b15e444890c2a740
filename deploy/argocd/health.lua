-- Health of ShardMap, ShardExtract, ShardShuffle, ShardSort and ShardUpload for Argo CD.
local health = {status = "Progressing", message = "waiting for the operator"}
local status = obj.status
if status == nil or status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end

local is = {}
for _, condition in ipairs(status.conditions) do
  is[condition.type] = condition.status == "True"
end

if status.message ~= nil and status.message ~= "" then
  health.message = status.message
else
  health.message = status.phase
end
if is.Stalled or is.Failed then
  health.status = "Degraded"
  if status.lastFailure ~= nil and status.lastFailure.message ~= nil and status.lastFailure.message ~= status.message then
    health.message = health.message .. " (" .. status.lastFailure.reason .. ": " .. status.lastFailure.message .. ")"
  end
elseif is.Suspended then
  health.status = "Suspended"
elseif is.Ready then
  health.status = "Healthy"
elseif status.shardsText ~= nil and status.shardsText ~= "" then
  health.message = health.message .. " (" .. status.shardsText .. " shards)"
end
return health

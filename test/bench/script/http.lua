-- http.lua
--	What wrk posts: otp_ids from a file, each once, with the right code; or sends to phones that hardly come twice.
--
--	wrk ... -s http.lua URL -- API_KEY verify FILE THREADS
--	wrk ... -s http.lua URL -- API_KEY send

local ffi = require("ffi")
ffi.cdef [[
	typedef struct { long tv_sec; long tv_nsec; } otp_time;
	int clock_gettime(int clock, otp_time *time);
]]
local clock = ffi.new("otp_time")
local threads = {}

-- wrk goes on for as long as it was told to, also when there is nothing left to ask
local function now()
	ffi.C.clock_gettime(1, clock)
	return tonumber(clock.tv_sec) + tonumber(clock.tv_nsec) / 1e9
end

function setup(thread)
	thread:set("number", #threads)
	thread:set("refused", 0)
	thread:set("answered", 0)
	thread:set("first", 0)
	thread:set("last", 0)
	table.insert(threads, thread)
end

function init(args)
	verb = args[2]
	headers = { ["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. args[1] }
	if verb == "verify" then
		ids = {}
		local n = 0
		for id in io.lines(args[3]) do
			if n % tonumber(args[4]) == number then table.insert(ids, id) end
			n = n + 1
		end
		nextid = 0
	else
		math.randomseed(os.time() * 7 + number)
	end
end

function request()
	if first == 0 then first = now() end
	if verb == "verify" then
		nextid = nextid + 1
		-- what is in flight when the others stop is not counted
		local id = ids[nextid] or ids[#ids]
		return wrk.format("POST", nil, headers, '{"otp_id": "' .. id .. '", "code": "123456"}')
	end
	return wrk.format("POST", nil, headers, string.format('{"phone": "+91%05d%05d"}', math.random(10000, 99999), math.random(0, 99999)))
end

function response(status)
	if verb == "verify" and answered >= #ids then return end
	answered = answered + 1
	last = now()
	if status ~= 200 then refused = refused + 1 end
	if verb == "verify" and answered >= #ids then wrk.thread:stop() end
end

function done(summary, latency)
	local answered, refused, first, last = 0, 0, 1e18, 0
	for _, thread in ipairs(threads) do
		answered = answered + thread:get("answered")
		refused = refused + thread:get("refused")
		first = math.min(first, thread:get("first"))
		last = math.max(last, thread:get("last"))
	end
	io.write(string.format("result %d %.6f %d %d %d %d\n", answered, last - first,
		latency:percentile(50), latency:percentile(99), refused, summary.errors.connect + summary.errors.read + summary.errors.timeout))
end

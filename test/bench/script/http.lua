-- http.lua
--	What wrk posts: otp_ids from a file, each once, with the right code; or sends to phones that hardly come twice.
--
--	wrk ... -s http.lua URL -- API_KEY verify FILE THREADS
--	wrk ... -s http.lua URL -- API_KEY send

local threads = {}
local wrong = 0

function setup(thread)
	thread:set("number", #threads)
	thread:set("refused", 0)
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
	if verb == "verify" then
		nextid = nextid + 1
		-- what is in flight when the others stop is not counted
		local id = ids[nextid] or ids[#ids]
		return wrk.format("POST", nil, headers, '{"otp_id": "' .. id .. '", "code": "123456"}')
	end
	return wrk.format("POST", nil, headers, string.format('{"phone": "+91%05d%05d"}', math.random(10000, 99999), math.random(0, 99999)))
end

function response(status)
	if verb == "verify" and nextid >= #ids then
		wrk.thread:stop()
	elseif status ~= 200 then
		refused = refused + 1
	end
end

function done(summary, latency)
	for _, thread in ipairs(threads) do wrong = wrong + thread:get("refused") end
	io.write(string.format("result %d %.6f %d %d %d %d\n", summary.requests, summary.duration / 1e6,
		latency:percentile(50), latency:percentile(99), wrong, summary.errors.connect + summary.errors.read + summary.errors.timeout))
end

-- The views that people and dashboards read. This file is applied after every
-- migration and after every switch of a rebuilt projection: a view holds on to
-- the table it was made with, not to the table's name.

create schema if not exists analytics;
comment on schema analytics is 'Read models of keyledger for people and dashboards; stable';

do $$ begin
    create role keyledger_reader nologin;
exception
    when duplicate_object or unique_violation then null;
    when insufficient_privilege then
        raise notice 'role keyledger_reader is missing and this user may not create roles: create it and grant it usage on schema analytics and select on its views';
end $$;

-- Written out, because a dashboard calls it for every row: a loop takes half as long
-- again, and SQL twice as long.
create or replace function analytics.plus(a bigint[], b bigint[]) returns bigint[]
language plpgsql immutable strict parallel safe as
$$
begin
    return array[a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4], a[5] + b[5], a[6] + b[6], a[7] + b[7], a[8] + b[8],
        a[9] + b[9], a[10] + b[10], a[11] + b[11], a[12] + b[12], a[13] + b[13], a[14] + b[14], a[15] + b[15], a[16] + b[16],
        a[17] + b[17], a[18] + b[18], a[19] + b[19], a[20] + b[20], a[21] + b[21], a[22] + b[22], a[23] + b[23]];
end
$$;
comment on function analytics.plus(bigint[], bigint[]) is 'Adds two latency histograms, class by class; see analytics.add_up';

do $$ begin
    create aggregate analytics.add_up(bigint[]) (sfunc = analytics.plus, stype = bigint[], combinefunc = analytics.plus, parallel = safe);
exception when duplicate_function then null;
end $$;
comment on aggregate analytics.add_up(bigint[]) is 'Adds latency histograms up, class by class';

-- Within a class the latencies are taken as spread evenly, as in histogram_quantile.
create or replace function analytics.percentile(p double precision, histogram bigint[]) returns double precision
language plpgsql immutable strict parallel safe as
$$
declare
    bounds constant bigint[] := array[1, 2, 3, 5, 7, 10, 15, 25, 40, 65, 100, 150, 250, 400, 650, 1000, 1500, 2500, 4000, 6500, 10000, 30000, 30000];
    total bigint := 0;
    upto bigint := 0;
    low bigint := 0;
    n bigint;
begin
    foreach n in array histogram loop
        total := total + n;
    end loop;
    for i in 1 .. array_length(bounds, 1) loop
        n := histogram[i];
        upto := upto + n;
        if n > 0 and upto >= p * total then
            return low + (bounds[i] - low) * (p * total - (upto - n)) / n;
        end if;
        low := bounds[i];
    end loop;
    return null;
end
$$;
comment on function analytics.percentile(double precision, bigint[]) is
    'Estimates a percentile (0.95) of latency in milliseconds from a histogram. Upper bounds of the classes: 1, 2, 3, 5, 7, 10, 15, 25, 40, 65, 100, 150, 250, 400, 650, 1000, 1500, 2500, 4000, 6500, 10000, 30000, more (taken as 30000)';

-- What the views of usage read: of usage_v1 as long as that is there, see migration
-- 00008, and then of usage_v2.
do $views$
declare
    figures constant text := 'keyspace, owner, key, environment, method, endpoint, status, code, requests, cost_micros, measured, latency_ms,
        to_1, to_2, to_3, to_5, to_7, to_10, to_15, to_25, to_40, to_65, to_100, to_150,
        to_250, to_400, to_650, to_1000, to_1500, to_2500, to_4000, to_6500, to_10000, to_30000, to_more';
    wide constant text := 'keyspace, owner, key, environment, method, endpoint, status, code, requests, cost_micros, measured, latency_ms,
        to_1::bigint, to_2::bigint, to_3::bigint, to_5::bigint, to_7::bigint, to_10::bigint, to_15::bigint, to_25::bigint,
        to_40::bigint, to_65::bigint, to_100::bigint, to_150::bigint, to_250::bigint, to_400::bigint, to_650::bigint, to_1000::bigint,
        to_1500::bigint, to_2500::bigint, to_4000::bigint, to_6500::bigint, to_10000::bigint, to_30000::bigint, to_more::bigint';
begin
    if to_regclass('keyledger.usage_v1') is not null then
        execute 'create or replace view keyledger.usage_minutes as select minute, ' || figures || ' from keyledger.usage_v1';
        execute 'create or replace view keyledger.usage_hours as select minute as hour, ' || wide || ' from keyledger.usage_v1 where false';
        execute 'create or replace view keyledger.usage_days as select minute as day, ' || wide || ' from keyledger.usage_v1 where false';
        create or replace view keyledger.usage_state as select timestamptz '-infinity' as folded, timestamptz '-infinity' as days_folded,
            null::timestamptz as minutes_from, null::timestamptz as hours_from, null::timestamptz as days_from;
        create or replace view keyledger.last_used as select * from keyledger.last_used_v1;
    else
        execute 'create or replace view keyledger.usage_minutes as select minute, ' || figures || ' from keyledger.usage_v2';
        execute 'create or replace view keyledger.usage_hours as select hour, ' || figures || ' from keyledger.usage_hours_v2';
        execute 'create or replace view keyledger.usage_days as select day, ' || figures || ' from keyledger.usage_days_v2';
        create or replace view keyledger.usage_state as select folded, days_folded, minutes_from, hours_from, days_from from keyledger.usage_state_v2;
        create or replace view keyledger.last_used as select * from keyledger.last_used_v2;
    end if;
end $views$;

create or replace view analytics.keys as
select
    k.id, k.keyspace, k.owner, o.name as owner_name, k.name,
    case when k.first <> '' and k.last <> '' then k.first || '...' || k.last
         when k.first <> '' then k.first || '...'
         when k.last <> '' then '...' || k.last
         else '' end as display,
    k.environment,
    case when k.revoked_at is not null then 'revoked'
         when k.expires_at <= now() then 'expired'
         else 'active' end as status,
    coalesce(nullif(k.plan, ''), o.plan, '') as plan,
    k.scopes, k.resources, k.limits, k.allowed_origins, k.allowed_ips, k.meta,
    k.created_at, k.created_by_type, k.created_by_id, k.expires_at, k.rotated_at,
    (select max(u) from unnest(k.earlier_until) u where u > now()) as grace_until,
    k.revoked_at, k.revoke_reason,
    case when s.last_used = 'successful' then l.last_success_at else l.last_used_at end as last_used_at,
    coalesce(l.uses, 0) as use_count,
    k.version
from keyledger.keys_v1 k
left join keyledger.owners_v1 o on o.keyspace = k.keyspace and o.id = k.owner
left join keyledger.keyspaces_v1 s on s.id = k.keyspace
left join keyledger.last_used l on l.key = k.id
where k.deleted_at is null and k.keyspace <> 'keyledger';
comment on view analytics.keys is 'Customers'' keys that are not deleted, as they are now';
comment on column analytics.keys.id is 'Stable id of the key';
comment on column analytics.keys.keyspace is 'API product';
comment on column analytics.keys.owner is 'Customer that the key belongs to';
comment on column analytics.keys.owner_name is 'Name of that customer';
comment on column analytics.keys.name is 'Name of the key';
comment on column analytics.keys.display is 'Shown characters of the current secret';
comment on column analytics.keys.environment is 'Environment, such as live or test';
comment on column analytics.keys.status is 'active, expired or revoked, at the time of the query';
comment on column analytics.keys.plan is 'Plan in force: the key''s own, else its owner''s';
comment on column analytics.keys.scopes is 'What the key may do';
comment on column analytics.keys.resources is 'What the key is bound to; empty: nothing';
comment on column analytics.keys.limits is 'The key''s own limits per window';
comment on column analytics.keys.allowed_origins is 'Origins it may be used from; empty: all';
comment on column analytics.keys.allowed_ips is 'Addresses it may be used from; empty: all';
comment on column analytics.keys.meta is 'Business data of the customer';
comment on column analytics.keys.created_at is 'When the key was created';
comment on column analytics.keys.created_by_type is 'Kind of actor that created it';
comment on column analytics.keys.created_by_id is 'Opaque id of that actor';
comment on column analytics.keys.expires_at is 'When it stops working; null: never';
comment on column analytics.keys.rotated_at is 'When the current secret was made by a rotation; null: never rotated';
comment on column analytics.keys.grace_until is 'Until when a previous secret still works; null: none does';
comment on column analytics.keys.revoked_at is 'When it was revoked; null: it was not';
comment on column analytics.keys.revoke_reason is 'Why';
comment on column analytics.keys.last_used_at is 'Last use, by the keyspace''s rule (any or successful)';
comment on column analytics.keys.use_count is 'Admitted requests';
comment on column analytics.keys.version is 'Lifecycle facts of the key that held';

create or replace view analytics.usage_minute as
select
    minute as minute,
    keyspace, owner, key, environment, method, endpoint, status, code,
    requests,
    case when code = 'VALID' and status between 1 and 399 then requests else 0 end as successes,
    case when code = 'VALID' and status >= 400 then requests else 0 end as errors,
    case when code = 'VALID' and status = 0 then requests else 0 end as unknown,
    case when code not in ('VALID', 'RATE_LIMITED') then requests else 0 end as denied,
    case when code = 'RATE_LIMITED' then requests else 0 end as rate_limited,
    cost_micros,
    measured,
    latency_ms,
    array[to_1::bigint, to_2::bigint, to_3::bigint, to_5::bigint, to_7::bigint,
        to_10::bigint, to_15::bigint, to_25::bigint, to_40::bigint, to_65::bigint,
        to_100::bigint, to_150::bigint, to_250::bigint, to_400::bigint, to_650::bigint,
        to_1000::bigint, to_1500::bigint, to_2500::bigint, to_4000::bigint, to_6500::bigint,
        to_10000::bigint, to_30000::bigint, to_more::bigint] as histogram
from keyledger.usage_minutes
where requests <> 0; -- a row whose uses all moved to their outcomes
comment on view analytics.usage_minute is 'Requests per minute, key, outcome and endpoint';
comment on column analytics.usage_minute.minute is 'Start of the minute, UTC';
comment on column analytics.usage_minute.keyspace is 'Keyspace of the key';
comment on column analytics.usage_minute.owner is 'Owner of the key; empty where no key was known';
comment on column analytics.usage_minute.key is 'Key; empty where none was known';
comment on column analytics.usage_minute.environment is 'Environment of the key; empty for refusals';
comment on column analytics.usage_minute.method is 'HTTP method; empty for refusals';
comment on column analytics.usage_minute.endpoint is 'Path without its query, at most 256 bytes';
comment on column analytics.usage_minute.status is 'HTTP status of the answer; 0: not known, or refused';
comment on column analytics.usage_minute.code is 'Decision, section 3 of the contract; VALID: admitted';
comment on column analytics.usage_minute.requests is 'Requests, refused ones included';
comment on column analytics.usage_minute.successes is 'Admitted and answered below 400';
comment on column analytics.usage_minute.errors is 'Admitted and answered with 400 or above';
comment on column analytics.usage_minute.unknown is 'Admitted, outcome not reported (yet)';
comment on column analytics.usage_minute.denied is 'Refused for another reason than a limit';
comment on column analytics.usage_minute.rate_limited is 'Refused by a limit';
comment on column analytics.usage_minute.cost_micros is 'Cost in millionths';
comment on column analytics.usage_minute.measured is 'Requests whose latency is known';
comment on column analytics.usage_minute.latency_ms is 'Sum of the known latencies, milliseconds';
comment on column analytics.usage_minute.histogram is 'Measured requests per latency class, see analytics.percentile; add up with analytics.add_up';

create or replace view analytics.usage_hour as
select
    hour,
    keyspace, owner, key, environment, method, endpoint, status, code,
    requests,
    case when code = 'VALID' and status between 1 and 399 then requests else 0 end as successes,
    case when code = 'VALID' and status >= 400 then requests else 0 end as errors,
    case when code = 'VALID' and status = 0 then requests else 0 end as unknown,
    case when code not in ('VALID', 'RATE_LIMITED') then requests else 0 end as denied,
    case when code = 'RATE_LIMITED' then requests else 0 end as rate_limited,
    cost_micros,
    measured,
    latency_ms,
    (latency_ms::numeric / nullif(measured, 0))::double precision as average_ms,
    analytics.percentile(0.50, histogram) as p50_ms,
    analytics.percentile(0.95, histogram) as p95_ms,
    analytics.percentile(0.99, histogram) as p99_ms,
    histogram
from (
    select hour, keyspace, owner, key, environment, method, endpoint, status, code, requests, cost_micros, measured, latency_ms,
        array[to_1, to_2, to_3, to_5, to_7, to_10,
        to_15, to_25, to_40, to_65, to_100, to_150,
        to_250, to_400, to_650, to_1000, to_1500, to_2500,
        to_4000, to_6500, to_10000, to_30000, to_more] as histogram
    from keyledger.usage_hours where hour < date_trunc('hour', (select folded from keyledger.usage_state), 'UTC')
    union all
    select hour, keyspace, owner, key, environment, method, endpoint, status, code,
        sum(requests)::bigint, sum(cost_micros)::bigint, sum(measured)::bigint, sum(latency_ms)::bigint,
        array[sum(to_1)::bigint, sum(to_2)::bigint, sum(to_3)::bigint, sum(to_5)::bigint, sum(to_7)::bigint, sum(to_10)::bigint,
        sum(to_15)::bigint, sum(to_25)::bigint, sum(to_40)::bigint, sum(to_65)::bigint, sum(to_100)::bigint, sum(to_150)::bigint,
        sum(to_250)::bigint, sum(to_400)::bigint, sum(to_650)::bigint, sum(to_1000)::bigint, sum(to_1500)::bigint, sum(to_2500)::bigint,
        sum(to_4000)::bigint, sum(to_6500)::bigint, sum(to_10000)::bigint, sum(to_30000)::bigint, sum(to_more)::bigint]
    from (
        -- The upper bound makes a range, of which the planner expects few rows.
        select hour, keyspace, owner, key, environment, method, endpoint, status, code, requests, cost_micros, measured, latency_ms,
            to_1, to_2, to_3, to_5, to_7, to_10, to_15, to_25, to_40, to_65, to_100, to_150,
            to_250, to_400, to_650, to_1000, to_1500, to_2500, to_4000, to_6500, to_10000, to_30000, to_more
        from keyledger.usage_hours where hour >= date_trunc('hour', (select folded from keyledger.usage_state), 'UTC') and hour < 'infinity'
        union all
        select date_trunc('hour', minute, 'UTC'), keyspace, owner, key, environment, method, endpoint, status, code, requests, cost_micros, measured, latency_ms,
            to_1::bigint, to_2::bigint, to_3::bigint, to_5::bigint, to_7::bigint, to_10::bigint, to_15::bigint, to_25::bigint,
            to_40::bigint, to_65::bigint, to_100::bigint, to_150::bigint, to_250::bigint, to_400::bigint, to_650::bigint, to_1000::bigint,
            to_1500::bigint, to_2500::bigint, to_4000::bigint, to_6500::bigint, to_10000::bigint, to_30000::bigint, to_more::bigint
        from keyledger.usage_minutes where minute >= (select folded from keyledger.usage_state) and minute < 'infinity'
    ) running
    group by hour, keyspace, owner, key, environment, method, endpoint, status, code
) figures
where requests <> 0;
comment on view analytics.usage_hour is 'Requests per hour, key, outcome and endpoint';
comment on column analytics.usage_hour.hour is 'Start of the hour, UTC';
comment on column analytics.usage_hour.keyspace is 'Keyspace of the key';
comment on column analytics.usage_hour.owner is 'Owner of the key; empty where no key was known';
comment on column analytics.usage_hour.key is 'Key; empty where none was known';
comment on column analytics.usage_hour.environment is 'Environment of the key; empty for refusals';
comment on column analytics.usage_hour.method is 'HTTP method; empty for refusals';
comment on column analytics.usage_hour.endpoint is 'Path without its query, at most 256 bytes';
comment on column analytics.usage_hour.status is 'HTTP status of the answer; 0: not known, or refused';
comment on column analytics.usage_hour.code is 'Decision, section 3 of the contract; VALID: admitted';
comment on column analytics.usage_hour.requests is 'Requests, refused ones included';
comment on column analytics.usage_hour.successes is 'Admitted and answered below 400';
comment on column analytics.usage_hour.errors is 'Admitted and answered with 400 or above';
comment on column analytics.usage_hour.unknown is 'Admitted, outcome not reported (yet)';
comment on column analytics.usage_hour.denied is 'Refused for another reason than a limit';
comment on column analytics.usage_hour.rate_limited is 'Refused by a limit';
comment on column analytics.usage_hour.cost_micros is 'Cost in millionths';
comment on column analytics.usage_hour.measured is 'Requests whose latency is known';
comment on column analytics.usage_hour.latency_ms is 'Sum of the known latencies, milliseconds';
comment on column analytics.usage_hour.histogram is 'Measured requests per latency class, see analytics.percentile; add up with analytics.add_up';
comment on column analytics.usage_hour.average_ms is 'Mean latency, milliseconds';
comment on column analytics.usage_hour.p50_ms is 'Median latency, milliseconds';
comment on column analytics.usage_hour.p95_ms is '95th percentile of latency, milliseconds';
comment on column analytics.usage_hour.p99_ms is '99th percentile of latency, milliseconds';

create or replace view analytics.usage_day as
select
    day,
    keyspace, owner, key, environment, method, endpoint, status, code,
    requests,
    case when code = 'VALID' and status between 1 and 399 then requests else 0 end as successes,
    case when code = 'VALID' and status >= 400 then requests else 0 end as errors,
    case when code = 'VALID' and status = 0 then requests else 0 end as unknown,
    case when code not in ('VALID', 'RATE_LIMITED') then requests else 0 end as denied,
    case when code = 'RATE_LIMITED' then requests else 0 end as rate_limited,
    cost_micros,
    measured,
    latency_ms,
    (latency_ms::numeric / nullif(measured, 0))::double precision as average_ms,
    analytics.percentile(0.50, histogram) as p50_ms,
    analytics.percentile(0.95, histogram) as p95_ms,
    analytics.percentile(0.99, histogram) as p99_ms,
    histogram
from (
    select day, keyspace, owner, key, environment, method, endpoint, status, code, requests, cost_micros, measured, latency_ms,
        array[to_1, to_2, to_3, to_5, to_7, to_10,
        to_15, to_25, to_40, to_65, to_100, to_150,
        to_250, to_400, to_650, to_1000, to_1500, to_2500,
        to_4000, to_6500, to_10000, to_30000, to_more] as histogram
    from keyledger.usage_days where day < date_trunc('day', (select days_folded from keyledger.usage_state), 'UTC')
    union all
    select day, keyspace, owner, key, environment, method, endpoint, status, code,
        sum(requests)::bigint, sum(cost_micros)::bigint, sum(measured)::bigint, sum(latency_ms)::bigint,
        array[sum(to_1)::bigint, sum(to_2)::bigint, sum(to_3)::bigint, sum(to_5)::bigint, sum(to_7)::bigint, sum(to_10)::bigint,
        sum(to_15)::bigint, sum(to_25)::bigint, sum(to_40)::bigint, sum(to_65)::bigint, sum(to_100)::bigint, sum(to_150)::bigint,
        sum(to_250)::bigint, sum(to_400)::bigint, sum(to_650)::bigint, sum(to_1000)::bigint, sum(to_1500)::bigint, sum(to_2500)::bigint,
        sum(to_4000)::bigint, sum(to_6500)::bigint, sum(to_10000)::bigint, sum(to_30000)::bigint, sum(to_more)::bigint]
    from (
        -- The upper bound makes a range, of which the planner expects few rows.
        select day, keyspace, owner, key, environment, method, endpoint, status, code, requests, cost_micros, measured, latency_ms,
            to_1, to_2, to_3, to_5, to_7, to_10, to_15, to_25, to_40, to_65, to_100, to_150,
            to_250, to_400, to_650, to_1000, to_1500, to_2500, to_4000, to_6500, to_10000, to_30000, to_more
        from keyledger.usage_days where day >= date_trunc('day', (select days_folded from keyledger.usage_state), 'UTC') and day < 'infinity'
        union all
        select date_trunc('day', hour, 'UTC'), keyspace, owner, key, environment, method, endpoint, status, code, requests, cost_micros, measured, latency_ms,
            to_1, to_2, to_3, to_5, to_7, to_10, to_15, to_25, to_40, to_65, to_100, to_150,
            to_250, to_400, to_650, to_1000, to_1500, to_2500, to_4000, to_6500, to_10000, to_30000, to_more
        from keyledger.usage_hours where hour >= (select days_folded from keyledger.usage_state) and hour < 'infinity'
        union all
        select date_trunc('day', minute, 'UTC'), keyspace, owner, key, environment, method, endpoint, status, code, requests, cost_micros, measured, latency_ms,
            to_1::bigint, to_2::bigint, to_3::bigint, to_5::bigint, to_7::bigint, to_10::bigint, to_15::bigint, to_25::bigint,
            to_40::bigint, to_65::bigint, to_100::bigint, to_150::bigint, to_250::bigint, to_400::bigint, to_650::bigint, to_1000::bigint,
            to_1500::bigint, to_2500::bigint, to_4000::bigint, to_6500::bigint, to_10000::bigint, to_30000::bigint, to_more::bigint
        from keyledger.usage_minutes where minute >= (select folded from keyledger.usage_state) and minute < 'infinity'
    ) running
    group by day, keyspace, owner, key, environment, method, endpoint, status, code
) figures
where requests <> 0;
comment on view analytics.usage_day is 'Requests per day (UTC), key, outcome and endpoint';
comment on column analytics.usage_day.day is 'Start of the day, UTC';
comment on column analytics.usage_day.keyspace is 'Keyspace of the key';
comment on column analytics.usage_day.owner is 'Owner of the key; empty where no key was known';
comment on column analytics.usage_day.key is 'Key; empty where none was known';
comment on column analytics.usage_day.environment is 'Environment of the key; empty for refusals';
comment on column analytics.usage_day.method is 'HTTP method; empty for refusals';
comment on column analytics.usage_day.endpoint is 'Path without its query, at most 256 bytes';
comment on column analytics.usage_day.status is 'HTTP status of the answer; 0: not known, or refused';
comment on column analytics.usage_day.code is 'Decision, section 3 of the contract; VALID: admitted';
comment on column analytics.usage_day.requests is 'Requests, refused ones included';
comment on column analytics.usage_day.successes is 'Admitted and answered below 400';
comment on column analytics.usage_day.errors is 'Admitted and answered with 400 or above';
comment on column analytics.usage_day.unknown is 'Admitted, outcome not reported (yet)';
comment on column analytics.usage_day.denied is 'Refused for another reason than a limit';
comment on column analytics.usage_day.rate_limited is 'Refused by a limit';
comment on column analytics.usage_day.cost_micros is 'Cost in millionths';
comment on column analytics.usage_day.measured is 'Requests whose latency is known';
comment on column analytics.usage_day.latency_ms is 'Sum of the known latencies, milliseconds';
comment on column analytics.usage_day.histogram is 'Measured requests per latency class, see analytics.percentile; add up with analytics.add_up';
comment on column analytics.usage_day.average_ms is 'Mean latency, milliseconds';
comment on column analytics.usage_day.p50_ms is 'Median latency, milliseconds';
comment on column analytics.usage_day.p95_ms is '95th percentile of latency, milliseconds';
comment on column analytics.usage_day.p99_ms is '99th percentile of latency, milliseconds';

create or replace view analytics.usage_kept as
select 'minute' as resolution, minutes_from as since from keyledger.usage_state
union all select 'hour', hours_from from keyledger.usage_state
union all select 'day', days_from from keyledger.usage_state;
comment on view analytics.usage_kept is 'From when on usage is kept in each resolution';
comment on column analytics.usage_kept.resolution is 'minute, hour or day: the view it is about';
comment on column analytics.usage_kept.since is 'Older rows were removed; null: none were';

create or replace view analytics.last_used as
select l.key, l.keyspace, l.owner, k.name, l.last_used_at as last_any_at, l.last_success_at,
    case when s.last_used = 'successful' then l.last_success_at else l.last_used_at end as last_used_at,
    l.uses, l.successes, l.last_secret, l.previous_used_at
from keyledger.last_used l
left join keyledger.keys_v1 k on k.id = l.key
left join keyledger.keyspaces_v1 s on s.id = l.keyspace;
comment on view analytics.last_used is 'The last use of every key that was ever used';
comment on column analytics.last_used.key is 'Key';
comment on column analytics.last_used.keyspace is 'API product';
comment on column analytics.last_used.owner is 'Customer that the key belongs to';
comment on column analytics.last_used.name is 'Name of the key';
comment on column analytics.last_used.last_any_at is 'Last admitted request';
comment on column analytics.last_used.last_success_at is 'Last admitted request that was answered below 400';
comment on column analytics.last_used.last_used_at is 'Last use, by the keyspace''s rule (any or successful)';
comment on column analytics.last_used.uses is 'Admitted requests';
comment on column analytics.last_used.successes is 'Admitted requests answered below 400';
comment on column analytics.last_used.last_secret is 'Secret of the last use: current or previous, as it was then';
comment on column analytics.last_used.previous_used_at is 'Last use of a secret that had been rotated away';

create or replace view analytics.unused_keys as
select id, keyspace, owner, name, created_at, last_used_at, now() - coalesce(last_used_at, created_at) as unused_for
from analytics.keys
where status = 'active';
comment on view analytics.unused_keys is 'Active keys and for how long nobody has used them; filter by unused_for';
comment on column analytics.unused_keys.id is 'Key';
comment on column analytics.unused_keys.keyspace is 'API product';
comment on column analytics.unused_keys.owner is 'Customer that the key belongs to';
comment on column analytics.unused_keys.name is 'Name of the key';
comment on column analytics.unused_keys.created_at is 'When the key was created';
comment on column analytics.unused_keys.last_used_at is 'Last use; null: never used';
comment on column analytics.unused_keys.unused_for is 'Time since the last use, or since creation';

create or replace view analytics.expiring_keys as
select id, keyspace, owner, name, expires_at, expires_at - now() as expires_in, last_used_at
from analytics.keys
where status = 'active' and expires_at is not null;
comment on view analytics.expiring_keys is 'Active keys that will expire; filter by expires_in';
comment on column analytics.expiring_keys.id is 'Key';
comment on column analytics.expiring_keys.keyspace is 'API product';
comment on column analytics.expiring_keys.owner is 'Customer that the key belongs to';
comment on column analytics.expiring_keys.name is 'Name of the key';
comment on column analytics.expiring_keys.expires_at is 'When it stops working';
comment on column analytics.expiring_keys.expires_in is 'Time left';
comment on column analytics.expiring_keys.last_used_at is 'Last use; null: never used';

create or replace view analytics.rotation_age as
select k.id, k.keyspace, k.owner, k.name, coalesce(k.rotated_at, k.created_at) as secret_since,
    now() - coalesce(k.rotated_at, k.created_at) as secret_age,
    s.max_age, coalesce(now() - coalesce(k.rotated_at, k.created_at) > s.max_age, false) as overdue, k.grace_until
from analytics.keys k
left join lateral (
    -- Durations are Go-style, with d for days of 24 hours.
    select nullif(sum(m[1]::numeric * case m[2] when 'd' then 86400 when 'h' then 3600 when 'm' then 60 when 's' then 1 else 0.001 end), 0)
        * interval '1 second' as max_age
    from keyledger.keyspaces_v1 d, regexp_matches(d.document#>>'{lifecycle,rotation,max_age}', '([0-9.]+)(ms|d|h|m|s)', 'g') m
    where d.id = k.keyspace
) s on true
where k.status = 'active';
comment on view analytics.rotation_age is 'Age of the current secret of every active key';
comment on column analytics.rotation_age.id is 'Key';
comment on column analytics.rotation_age.keyspace is 'API product';
comment on column analytics.rotation_age.owner is 'Customer that the key belongs to';
comment on column analytics.rotation_age.name is 'Name of the key';
comment on column analytics.rotation_age.secret_since is 'When the current secret was made';
comment on column analytics.rotation_age.secret_age is 'Time since then';
comment on column analytics.rotation_age.max_age is 'Age at which the keyspace calls a secret overdue; null: never';
comment on column analytics.rotation_age.overdue is 'Whether the secret is older than that';
comment on column analytics.rotation_age.grace_until is 'Until when a previous secret still works; null: none does';

create or replace view analytics.key_caps as
select o.keyspace, o.id as owner, o.name, o.plan,
    (s.document#>>array['plans', o.plan, 'max_keys'])::int as max_keys,
    count(k.id) filter (where k.status = 'active') as active_keys
from keyledger.owners_v1 o
left join keyledger.keyspaces_v1 s on s.id = o.keyspace
left join analytics.keys k on k.keyspace = o.keyspace and k.owner = o.id
where o.keyspace <> 'keyledger'
group by o.keyspace, o.id, o.name, o.plan, s.document;
comment on view analytics.key_caps is 'Active keys of every owner against the cap of its plan';
comment on column analytics.key_caps.keyspace is 'API product';
comment on column analytics.key_caps.owner is 'Customer';
comment on column analytics.key_caps.name is 'Name of the customer';
comment on column analytics.key_caps.plan is 'Its plan';
comment on column analytics.key_caps.max_keys is 'Keys that the plan allows; null: any number';
comment on column analytics.key_caps.active_keys is 'Keys neither revoked, deleted nor expired';

create or replace view analytics.lifecycle_events as
select sequence, event_id, type, version, time, keyspace, owner, key, key_version, actor_type, actor_id, void,
    ((convert_from(body, 'UTF8')::jsonb->'data') #- '{secret,sha256}')::json as data
from keyledger.ledger_v1;
comment on view analytics.lifecycle_events is 'Every fact in LEDGER, in order';
comment on column analytics.lifecycle_events.sequence is 'Place in LEDGER';
comment on column analytics.lifecycle_events.event_id is 'Id of the event';
comment on column analytics.lifecycle_events.type is 'Type, such as key.revoked';
comment on column analytics.lifecycle_events.version is 'Version of the type';
comment on column analytics.lifecycle_events.time is 'When it was decided';
comment on column analytics.lifecycle_events.keyspace is 'API product';
comment on column analytics.lifecycle_events.owner is 'Customer; empty for facts about a keyspace';
comment on column analytics.lifecycle_events.key is 'Key; empty for facts about an owner or a keyspace';
comment on column analytics.lifecycle_events.key_version is 'Number of the fact in the life of its key, owner or keyspace';
comment on column analytics.lifecycle_events.actor_type is 'Kind of actor that caused it';
comment on column analytics.lifecycle_events.actor_id is 'Opaque id of that actor';
comment on column analytics.lifecycle_events.void is 'True: another fact came first, this one does not count';
comment on column analytics.lifecycle_events.data is 'What the event says, by its type, without hashes of secrets';

create or replace view analytics.acts as
select sequence, event_id, type, time, keyspace, owner, key, actor_type, actor_id, detail, reason, count
from keyledger.acts_v1;
comment on view analytics.acts is 'Acts around the ledger: who read, held, erased or pruned what, and which program started where';
comment on column analytics.acts.sequence is 'Place in OPS';
comment on column analytics.acts.event_id is 'Id of the event';
comment on column analytics.acts.type is 'Type, such as audit.read';
comment on column analytics.acts.time is 'When it was done';
comment on column analytics.acts.keyspace is 'API product it was about; empty: none alone';
comment on column analytics.acts.owner is 'Customer it was about; empty: none alone';
comment on column analytics.acts.key is 'Key it was about; empty: none alone';
comment on column analytics.acts.actor_type is 'Kind of actor that did it';
comment on column analytics.acts.actor_id is 'Opaque id of that actor';
comment on column analytics.acts.detail is 'What: of audit.read what was read, of service.started program, version and node, of hold.set held or released';
comment on column analytics.acts.reason is 'Why, where a reason was asked for';
comment on column analytics.acts.count is 'How many: of audit.read events that were handed out, of privacy.erased data keys, of signin.failed attempts; 0: nothing to count';

create or replace view analytics.usage_gaps as
select time, keyspace, node, count, reason, began, ended, sequence
from keyledger.gaps_v1;
comment on view analytics.usage_gaps is 'Uses that verifiers could not record, as they declared them';
comment on column analytics.usage_gaps.time is 'When it was declared';
comment on column analytics.usage_gaps.keyspace is 'API product whose uses are missing';
comment on column analytics.usage_gaps.node is 'Verifier that declared it';
comment on column analytics.usage_gaps.count is 'Uses that are missing; 0: nobody knows';
comment on column analytics.usage_gaps.reason is 'Why';
comment on column analytics.usage_gaps.began is 'From when on uses may be missing; null: not known';
comment on column analytics.usage_gaps.ended is 'Until when';
comment on column analytics.usage_gaps.sequence is 'Place in USAGE';

create or replace view analytics.alerts as
select alert, keyspace, owner, key, condition, rule, rule_from, case when resolved_at is null then 'raised' else 'resolved' end as state,
    value, threshold, detail, raised_at, resolved_at, coalesce(resolved_at, now()) - raised_at as lasted, nullif(reason, '') as resolved_because
from keyledger.alerts_v1;
comment on view analytics.alerts is 'Every alert that was raised';
comment on column analytics.alerts.alert is 'Id of the alert';
comment on column analytics.alerts.keyspace is 'API product';
comment on column analytics.alerts.owner is 'Customer';
comment on column analytics.alerts.key is 'Key; empty where all keys of the customer are meant';
comment on column analytics.alerts.condition is 'What its rule watches (when), such as error_rate';
comment on column analytics.alerts.rule is 'The rule in words';
comment on column analytics.alerts.rule_from is 'Whose rule it was: key, resource, owner, keyspace, document or built-in';
comment on column analytics.alerts.state is 'raised or resolved';
comment on column analytics.alerts.value is 'What was measured when it was raised';
comment on column analytics.alerts.threshold is 'What the rule allows';
comment on column analytics.alerts.detail is 'The same for people';
comment on column analytics.alerts.raised_at is 'When it was raised';
comment on column analytics.alerts.resolved_at is 'When it was resolved; null: it was not';
comment on column analytics.alerts.lasted is 'How long it was raised, or has been so far';
comment on column analytics.alerts.resolved_because is 'quiet (below the lower bound for long enough), over, key_ended or rule_gone';

create or replace view analytics.revocations as
select r.sequence, r.decided_at, r.fact, r.keyspace, r.owner, r.key, r.basis, r.node as measured_by,
    r.append_us / 1000.0 as append_ms, r.confirmed, r.unconfirmed, r.slowest_us / 1000.0 as slowest_ms, r.certain_us / 1000.0 as certain_ms
from keyledger.revocations_v1 r;
comment on view analytics.revocations is 'How long verifiers still accepted what was revoked, rotated away without grace, or ended before its time';
comment on column analytics.revocations.sequence is 'Place in LEDGER of the fact that ended it';
comment on column analytics.revocations.decided_at is 'Time of that fact';
comment on column analytics.revocations.fact is 'Its type, such as key.revoked';
comment on column analytics.revocations.keyspace is 'API product';
comment on column analytics.revocations.owner is 'Customer';
comment on column analytics.revocations.key is 'Key';
comment on column analytics.revocations.basis is 'acknowledged: from the acknowledgement of the fact to the arrival of a verifier''s word, by one clock, an upper bound; clocks: from decided_at, by the clocks of two machines';
comment on column analytics.revocations.measured_by is 'Node that measured';
comment on column analytics.revocations.append_ms is 'How long the append had taken before; 0: not known';
comment on column analytics.revocations.confirmed is 'Verifiers that said in time that they refuse';
comment on column analytics.revocations.unconfirmed is 'Verifiers that did not';
comment on column analytics.revocations.slowest_ms is 'Until the slowest that confirmed refused; null: none did';
comment on column analytics.revocations.certain_ms is 'After this time every verifier refused, or answered STATE_TOO_STALE if it ran; null: not known';

create or replace view analytics.revocation_verifiers as
select r.sequence, r.decided_at, r.keyspace, r.owner, r.key, r.basis, n.node, n.delay_us is not null as confirmed,
    n.delay_us / 1000.0 as delay_ms, n.clock_us / 1000.0 as clock_ms, n.stale_ms
from keyledger.revocations_v1 r join keyledger.revocation_nodes_v1 n on n.measured = r.measured;
comment on view analytics.revocation_verifiers is 'The same for each verifier';
comment on column analytics.revocation_verifiers.sequence is 'Place in LEDGER of the fact that ended it';
comment on column analytics.revocation_verifiers.decided_at is 'Time of that fact';
comment on column analytics.revocation_verifiers.keyspace is 'API product';
comment on column analytics.revocation_verifiers.owner is 'Customer';
comment on column analytics.revocation_verifiers.key is 'Key';
comment on column analytics.revocation_verifiers.basis is 'As in analytics.revocations';
comment on column analytics.revocation_verifiers.node is 'Verifier';
comment on column analytics.revocation_verifiers.confirmed is 'It said in time that it refuses';
comment on column analytics.revocation_verifiers.delay_ms is 'It refused by then; null: it did not confirm';
comment on column analytics.revocation_verifiers.clock_ms is 'When it stopped by its own clock, against the time of the fact; machines'' clocks differ; null: not told';
comment on column analytics.revocation_verifiers.stale_ms is 'Of one that did not confirm: if it ran, it answered STATE_TOO_STALE after this time; 0: not known';

create or replace view analytics.projection_status as
select p.name, p.stream, p.sequence as position, h.sequence as head,
    greatest(h.sequence - p.sequence, 0) as lag, p.state, p.error, p.failed_at as failed_sequence, p.moved_at, h.seen_at as head_seen_at, p.rebuilds
from keyledger.positions p
left join keyledger.heads h on h.stream = p.stream;
comment on view analytics.projection_status is 'How far each read model has followed its stream';
comment on column analytics.projection_status.name is 'Projection';
comment on column analytics.projection_status.stream is 'Stream that it reads';
comment on column analytics.projection_status.position is 'Last sequence that it holds';
comment on column analytics.projection_status.head is 'Last sequence of the stream, when it was last seen';
comment on column analytics.projection_status.lag is 'Messages that it has not read yet';
comment on column analytics.projection_status.state is 'starting, running, waiting (cannot reach something, will try again) or stopped (needs somebody)';
comment on column analytics.projection_status.error is 'Why it is waiting or stopped, and what to do';
comment on column analytics.projection_status.failed_sequence is 'Sequence that it stopped at; null: it runs';
comment on column analytics.projection_status.moved_at is 'When it last moved';
comment on column analytics.projection_status.head_seen_at is 'When the head was seen';
comment on column analytics.projection_status.rebuilds is 'How often it was rebuilt and switched';

do $$ begin
    if exists (select from pg_roles where rolname = 'keyledger_reader') then
        grant usage on schema analytics to keyledger_reader;
        grant select on all tables in schema analytics to keyledger_reader;
    end if;
exception when insufficient_privilege then
    raise notice 'keyledger_reader could not be granted the views in schema analytics';
end $$;

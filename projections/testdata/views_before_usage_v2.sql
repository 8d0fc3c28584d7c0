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

create or replace function analytics.plus(a bigint[], b bigint[]) returns bigint[]
language sql immutable strict parallel safe as
$$ select array_agg(x + y order by i) from unnest(a, b) with ordinality as t(x, y, i) $$;

do $$ begin
    create aggregate analytics.add_up(bigint[]) (sfunc = analytics.plus, stype = bigint[], combinefunc = analytics.plus, parallel = safe);
exception when duplicate_function then null;
end $$;
comment on aggregate analytics.add_up(bigint[]) is 'Adds latency histograms up, class by class';

-- Within a class the latencies are taken as spread evenly, as in histogram_quantile.
create or replace function analytics.percentile(p double precision, histogram bigint[]) returns double precision
language sql immutable strict parallel safe as
$$
    with classes as (
        select n, lag(bound, 1, 0) over (order by i) as low, bound as high, sum(n) over (order by i) as upto, sum(n) over () as total
        from unnest(histogram, array[1, 2, 3, 5, 7, 10, 15, 25, 40, 65, 100, 150, 250, 400, 650, 1000, 1500, 2500, 4000, 6500, 10000, 30000, 30000]) with ordinality as t(n, bound, i)
    )
    select low + (high - low) * (p * total - (upto - n)) / n
    from classes
    where n > 0 and upto >= p * total
    order by upto
    limit 1
$$;
comment on function analytics.percentile(double precision, bigint[]) is
    'Estimates a percentile (0.95) of latency in milliseconds from a histogram. Upper bounds of the classes: 1, 2, 3, 5, 7, 10, 15, 25, 40, 65, 100, 150, 250, 400, 650, 1000, 1500, 2500, 4000, 6500, 10000, 30000, more (taken as 30000)';

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
left join keyledger.last_used_v1 l on l.key = k.id
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
from keyledger.usage_v1
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
    date_trunc('hour', minute, 'UTC') as hour,
    keyspace, owner, key, environment, method, endpoint, status, code,
    sum(requests)::bigint as requests,
    sum(successes)::bigint as successes,
    sum(errors)::bigint as errors,
    sum(unknown)::bigint as unknown,
    sum(denied)::bigint as denied,
    sum(rate_limited)::bigint as rate_limited,
    sum(cost_micros)::bigint as cost_micros,
    sum(measured)::bigint as measured,
    sum(latency_ms)::bigint as latency_ms,
    (sum(latency_ms) / nullif(sum(measured), 0))::double precision as average_ms,
    analytics.percentile(0.50, analytics.add_up(histogram)) as p50_ms,
    analytics.percentile(0.95, analytics.add_up(histogram)) as p95_ms,
    analytics.percentile(0.99, analytics.add_up(histogram)) as p99_ms,
    analytics.add_up(histogram) as histogram
from analytics.usage_minute
group by 1, keyspace, owner, key, environment, method, endpoint, status, code;
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
    date_trunc('day', minute, 'UTC') as day,
    keyspace, owner, key, environment, method, endpoint, status, code,
    sum(requests)::bigint as requests,
    sum(successes)::bigint as successes,
    sum(errors)::bigint as errors,
    sum(unknown)::bigint as unknown,
    sum(denied)::bigint as denied,
    sum(rate_limited)::bigint as rate_limited,
    sum(cost_micros)::bigint as cost_micros,
    sum(measured)::bigint as measured,
    sum(latency_ms)::bigint as latency_ms,
    (sum(latency_ms) / nullif(sum(measured), 0))::double precision as average_ms,
    analytics.percentile(0.50, analytics.add_up(histogram)) as p50_ms,
    analytics.percentile(0.95, analytics.add_up(histogram)) as p95_ms,
    analytics.percentile(0.99, analytics.add_up(histogram)) as p99_ms,
    analytics.add_up(histogram) as histogram
from analytics.usage_minute
group by 1, keyspace, owner, key, environment, method, endpoint, status, code;
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

create or replace view analytics.last_used as
select l.key, l.keyspace, l.owner, k.name, l.last_used_at as last_any_at, l.last_success_at,
    case when s.last_used = 'successful' then l.last_success_at else l.last_used_at end as last_used_at,
    l.uses, l.successes, l.last_secret, l.previous_used_at
from keyledger.last_used_v1 l
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

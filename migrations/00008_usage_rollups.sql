-- +goose Up

-- Requests per minute, hour and day: usage_v2 beside usage_v1, which serves until
-- the new one has read as far and is then dropped. The key comes first, because what
-- is looked at most is one key. The columns to_N are those of usage_v1.
create table keyledger.usage_v2 (
    key         text collate "C" not null,
    minute      timestamptz not null,
    keyspace    text collate "C" not null,
    owner       text collate "C" not null,
    code        text collate "C" not null,
    status      smallint not null,
    environment text collate "C" not null,
    method      text collate "C" not null,
    endpoint    text collate "C" not null,
    requests    bigint not null,
    measured    bigint not null,
    latency_ms  bigint not null,
    cost_micros bigint not null,
    to_1 int not null, to_2 int not null, to_3 int not null, to_5 int not null,
    to_7 int not null, to_10 int not null, to_15 int not null, to_25 int not null,
    to_40 int not null, to_65 int not null, to_100 int not null, to_150 int not null,
    to_250 int not null, to_400 int not null, to_650 int not null, to_1000 int not null,
    to_1500 int not null, to_2500 int not null, to_4000 int not null, to_6500 int not null,
    to_10000 int not null, to_30000 int not null, to_more int not null,
    primary key (key, minute, keyspace, owner, code, status, environment, method, endpoint)
) with (fillfactor = 80);
create index on keyledger.usage_v2 (minute);
create index on keyledger.usage_v2 (keyspace, owner, minute);
comment on table keyledger.usage_v2 is 'Requests per key and minute, by outcome and endpoint; status 0: not known';

-- What is in the minutes before usage_state_v2.folded, added up; days likewise from
-- hours.
create table keyledger.usage_hours_v2 (
    key         text collate "C" not null,
    hour        timestamptz not null,
    keyspace    text collate "C" not null,
    owner       text collate "C" not null,
    code        text collate "C" not null,
    status      smallint not null,
    environment text collate "C" not null,
    method      text collate "C" not null,
    endpoint    text collate "C" not null,
    requests    bigint not null,
    measured    bigint not null,
    latency_ms  bigint not null,
    cost_micros bigint not null,
    to_1 bigint not null, to_2 bigint not null, to_3 bigint not null, to_5 bigint not null,
    to_7 bigint not null, to_10 bigint not null, to_15 bigint not null, to_25 bigint not null,
    to_40 bigint not null, to_65 bigint not null, to_100 bigint not null, to_150 bigint not null,
    to_250 bigint not null, to_400 bigint not null, to_650 bigint not null, to_1000 bigint not null,
    to_1500 bigint not null, to_2500 bigint not null, to_4000 bigint not null, to_6500 bigint not null,
    to_10000 bigint not null, to_30000 bigint not null, to_more bigint not null,
    primary key (key, hour, keyspace, owner, code, status, environment, method, endpoint)
) with (fillfactor = 80);
create index on keyledger.usage_hours_v2 (hour);
create index on keyledger.usage_hours_v2 (keyspace, owner, hour);
comment on table keyledger.usage_hours_v2 is 'Requests per key and hour, likewise';

create table keyledger.usage_days_v2 (
    key         text collate "C" not null,
    day         timestamptz not null,
    keyspace    text collate "C" not null,
    owner       text collate "C" not null,
    code        text collate "C" not null,
    status      smallint not null,
    environment text collate "C" not null,
    method      text collate "C" not null,
    endpoint    text collate "C" not null,
    requests    bigint not null,
    measured    bigint not null,
    latency_ms  bigint not null,
    cost_micros bigint not null,
    to_1 bigint not null, to_2 bigint not null, to_3 bigint not null, to_5 bigint not null,
    to_7 bigint not null, to_10 bigint not null, to_15 bigint not null, to_25 bigint not null,
    to_40 bigint not null, to_65 bigint not null, to_100 bigint not null, to_150 bigint not null,
    to_250 bigint not null, to_400 bigint not null, to_650 bigint not null, to_1000 bigint not null,
    to_1500 bigint not null, to_2500 bigint not null, to_4000 bigint not null, to_6500 bigint not null,
    to_10000 bigint not null, to_30000 bigint not null, to_more bigint not null,
    primary key (key, day, keyspace, owner, code, status, environment, method, endpoint)
) with (fillfactor = 80);
create index on keyledger.usage_days_v2 (day);
create index on keyledger.usage_days_v2 (keyspace, owner, day);
comment on table keyledger.usage_days_v2 is 'Requests per key and day (UTC), likewise';

-- One row: how far minutes are added up into hours and hours into days, and what was
-- removed by age. All times are those of the facts.
create table keyledger.usage_state_v2 (
    one          boolean primary key,
    clock        timestamptz not null, -- the latest time of a fact, following at most an hour at a time
    folded       timestamptz not null, -- minutes before it are in the hours
    days_folded  timestamptz not null, -- hours before it are in the days
    minutes_from timestamptz,          -- minutes before it were removed
    hours_from   timestamptz,
    days_from    timestamptz
);
comment on table keyledger.usage_state_v2 is 'How far usage is added up, and from when on it is kept';

create table keyledger.last_used_v2 (like keyledger.last_used_v1 including all) with (fillfactor = 80);
comment on table keyledger.last_used_v2 is 'The last use of each key, any and successful';

create table keyledger.outcomes_v2 (like keyledger.outcomes_v1 including all);
comment on table keyledger.outcomes_v2 is 'Uses waiting for their outcome, and outcomes waiting for their use';

-- Where nothing has been read yet there is nothing to go on serving. Views come after
-- the migrations.
-- +goose StatementBegin
do $$ begin
    if not exists (select from keyledger.positions where name = 'usage_v1') then
        drop table keyledger.usage_v1, keyledger.last_used_v1, keyledger.outcomes_v1 cascade;
    end if;
end $$;
-- +goose StatementEnd

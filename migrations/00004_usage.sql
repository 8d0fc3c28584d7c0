-- +goose Up

-- Requests per minute. The columns to_N count measured requests whose latency
-- was above the bound before and at most N milliseconds; they can be added up.
create table keyledger.usage_v1 (
    keyspace    text collate "C" not null,
    owner       text collate "C" not null,
    key         text collate "C" not null,
    minute      timestamptz not null,
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
    primary key (keyspace, owner, key, minute, code, status, environment, method, endpoint)
) with (fillfactor = 80);
create index on keyledger.usage_v1 using brin (minute) with (pages_per_range = 16);
comment on table keyledger.usage_v1 is 'Requests per key and minute, by outcome and endpoint; status 0: not known';

create table keyledger.last_used_v1 (
    key             text collate "C" primary key,
    keyspace        text collate "C" not null,
    owner           text collate "C" not null,
    uses            bigint not null,
    successes       bigint not null,
    last_used_at    timestamptz not null,
    last_success_at timestamptz,
    last_secret     text not null,
    previous_used_at timestamptz
) with (fillfactor = 80);
comment on table keyledger.last_used_v1 is 'The last use of each key, any and successful';

-- Uses whose outcome was not known when they were decided, by decision. A row
-- stays a while after both halves have come, so that a repeated report is
-- recognised.
create table keyledger.outcomes_v1 (
    decision    uuid primary key,
    at          timestamptz not null,
    used_at     timestamptz,
    reported_at timestamptz,
    keyspace    text collate "C" not null,
    owner       text collate "C" not null,
    key         text collate "C" not null,
    environment text collate "C" not null,
    method      text collate "C" not null,
    endpoint    text collate "C" not null,
    cost_micros bigint not null,
    reported_endpoint text collate "C" not null,
    reported_status   smallint not null,
    reported_latency  bigint,
    reported_cost     bigint
);
create index on keyledger.outcomes_v1 (at);
comment on table keyledger.outcomes_v1 is 'Uses waiting for their outcome, and outcomes waiting for their use';

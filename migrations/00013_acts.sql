-- +goose Up

create table keyledger.acts_v1 (
    sequence   bigint primary key,
    event_id   text collate "C" not null,
    type       text collate "C" not null,
    time       timestamptz not null,
    keyspace   text collate "C" not null,
    owner      text collate "C" not null,
    key        text collate "C" not null,
    actor_type text collate "C" not null,
    actor_id   text collate "C" not null,
    detail     text not null,
    reason     text not null,
    count      bigint not null
);
create index on keyledger.acts_v1 (type, time);
create index on keyledger.acts_v1 using brin (time);
comment on table keyledger.acts_v1 is 'Acts around the ledger, as OPS has them, a line each';

create table keyledger.gaps_v1 (
    sequence bigint not null,
    line     int not null,
    time     timestamptz not null,
    keyspace text collate "C" not null,
    node     text collate "C" not null,
    count    bigint not null,
    reason   text not null,
    began    timestamptz,
    ended    timestamptz,
    primary key (sequence, line)
);
comment on table keyledger.gaps_v1 is 'Uses that could not be recorded, as USAGE declares them';

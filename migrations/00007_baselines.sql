-- +goose Up

-- Where the rebuild of a projection begins whose stream was pruned: the rows of
-- the tables in keyledger_baseline are the fold of the stream up to sequence. They
-- are made of messages that are gone: nothing else holds them.
create schema if not exists keyledger_baseline;
create table keyledger.baselines (
    name     text collate "C" primary key,
    stream   text not null,
    sequence bigint not null,
    event_id text not null,
    kept_at  timestamptz not null default now()
);
comment on table keyledger.baselines is 'From where the stream of each projection can be folded again';

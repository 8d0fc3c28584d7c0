-- +goose Up

-- LEDGER byte for byte: SQL for auditors, and a second copy.
create table keyledger.ledger_v1 (
    sequence    bigint primary key,
    event_id    text collate "C" not null,
    type        text collate "C" not null,
    version     int not null,
    time        timestamptz not null,
    keyspace    text collate "C" not null,
    owner       text collate "C" not null,
    key         text collate "C" not null,
    key_version bigint not null,
    actor_type  text collate "C" not null,
    actor_id    text collate "C" not null,
    subject     text collate "C" not null,
    void        boolean not null,
    body        bytea not null
);
create index on keyledger.ledger_v1 (key, sequence) where key <> '';
create index on keyledger.ledger_v1 (keyspace, owner, sequence) where key = '';
create index on keyledger.ledger_v1 using brin (time);
comment on table keyledger.ledger_v1 is 'LEDGER as it is stored; void facts are marked';

-- +goose Up

-- One row for each fact of LEDGER that ended a key, or a secret of it, at once, as
-- revocation.measured on OPS tells how long verifiers still accepted it.
create table keyledger.revocations_v1 (
    sequence    bigint primary key,
    measured    bigint not null,
    fact        text collate "C" not null,
    decided_at  timestamptz not null,
    keyspace    text collate "C" not null,
    owner       text collate "C" not null,
    key         text collate "C" not null,
    node        text collate "C" not null,
    basis       text collate "C" not null,
    append_us   bigint not null,
    confirmed   int not null,
    unconfirmed int not null,
    slowest_us  bigint,
    certain_us  bigint
);
create index on keyledger.revocations_v1 (decided_at);
create index on keyledger.revocations_v1 (keyspace, owner, decided_at);
create index on keyledger.revocations_v1 (key);
comment on table keyledger.revocations_v1 is 'How long verifiers still accepted what a fact had ended, by the fact''s place in LEDGER; measured: the measurement''s place in OPS';

-- A row for each verifier of each measurement, by the measurement's place in OPS.
create table keyledger.revocation_nodes_v1 (
    measured bigint not null,
    node     text collate "C" not null,
    delay_us bigint,
    clock_us bigint,
    stale_ms bigint,
    primary key (measured, node)
);
comment on table keyledger.revocation_nodes_v1 is 'The same by verifier; delay_us null: it did not confirm in time';

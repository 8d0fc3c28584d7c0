-- +goose Up

-- The tree over each stream, in tiles of height 8 (C2SP tlog-tiles): a row holds up
-- to 256 hashes of 32 bytes. A tile of level 0 knows which messages its leaves
-- are lines of: first_line of first_sequence is its first leaf, and runs holds a
-- varint per message, how many of its lines stand in this tile.

create table keyledger.tree_ledger_v1 (
    level          smallint not null,
    number         bigint not null,
    hashes         bytea not null,
    first_sequence bigint,
    first_line     int,
    runs           bytea,
    primary key (level, number)
);
alter table keyledger.tree_ledger_v1 alter column hashes set storage external;
create index on keyledger.tree_ledger_v1 (first_sequence, first_line) where level = 0;
comment on table keyledger.tree_ledger_v1 is 'The Merkle tree over LEDGER, in tiles';

create table keyledger.tree_usage_v1 (
    level          smallint not null,
    number         bigint not null,
    hashes         bytea not null,
    first_sequence bigint,
    first_line     int,
    runs           bytea,
    primary key (level, number)
);
alter table keyledger.tree_usage_v1 alter column hashes set storage external;
create index on keyledger.tree_usage_v1 (first_sequence, first_line) where level = 0;
comment on table keyledger.tree_usage_v1 is 'The Merkle tree over USAGE, in tiles';

create table keyledger.tree_ops_v1 (
    level          smallint not null,
    number         bigint not null,
    hashes         bytea not null,
    first_sequence bigint,
    first_line     int,
    runs           bytea,
    primary key (level, number)
);
alter table keyledger.tree_ops_v1 alter column hashes set storage external;
create index on keyledger.tree_ops_v1 (first_sequence, first_line) where level = 0;
comment on table keyledger.tree_ops_v1 is 'The Merkle tree over OPS, in tiles';

create table keyledger.tree_feed_v1 (
    level          smallint not null,
    number         bigint not null,
    hashes         bytea not null,
    first_sequence bigint,
    first_line     int,
    runs           bytea,
    primary key (level, number)
);
alter table keyledger.tree_feed_v1 alter column hashes set storage external;
create index on keyledger.tree_feed_v1 (first_sequence, first_line) where level = 0;
comment on table keyledger.tree_feed_v1 is 'The Merkle tree over FEED, in tiles';

-- How many events of each key, owner and keyspace a stream holds, and a hash chain
-- over them. The row without a scope counts all events.

create table keyledger.parts_ledger_v1 (
    scope  bytea primary key,
    events bigint not null,
    chain  bytea not null
) with (fillfactor = 80);
comment on table keyledger.parts_ledger_v1 is 'The events of each scope in LEDGER: how many, and a chain over them';

create table keyledger.parts_usage_v1 (
    scope  bytea primary key,
    events bigint not null,
    chain  bytea not null
) with (fillfactor = 80);
comment on table keyledger.parts_usage_v1 is 'The events of each scope in USAGE: how many, and a chain over them';

create table keyledger.parts_ops_v1 (
    scope  bytea primary key,
    events bigint not null,
    chain  bytea not null
) with (fillfactor = 80);
comment on table keyledger.parts_ops_v1 is 'The events of each scope in OPS: how many, and a chain over them';

create table keyledger.parts_feed_v1 (
    scope  bytea primary key,
    events bigint not null,
    chain  bytea not null
) with (fillfactor = 80);
comment on table keyledger.parts_feed_v1 is 'The events of each scope in FEED: how many, and a chain over them';

-- What was signed, as this database remembers it. It is no read model: it is
-- compared with what the bucket of the log and the published directory remember.
create table keyledger.log_checkpoints (
    stream    text collate "C" not null,
    size      bigint not null,
    root      bytea not null,
    sequence  bigint not null,
    event_id  text not null,
    signed    text not null,
    signed_at timestamptz not null default now(),
    primary key (stream, size)
);
comment on table keyledger.log_checkpoints is 'Checkpoints that were signed; of an hour that is over, the last one';

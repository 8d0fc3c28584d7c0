-- +goose Up

-- Where in USAGE a key, an owner or an endpoint is spoken of. A block is a range of
-- messages; starts is its first sequence. What a block holds of hashes is cut into
-- rows of at most 1,900 bytes, sorted by hash; first is the least hash of a row.
create table keyledger.uses_v1 (
    starts   bigint not null,
    first    bigint not null,
    postings bytea not null,
    primary key (starts, first)
);
-- Hashes do not compress.
alter table keyledger.uses_v1 alter column postings set storage external;
comment on table keyledger.uses_v1 is 'Which messages of USAGE speak of a key, an owner or an endpoint, by blocks of messages';

create table keyledger.uses_blocks_v1 (
    starts   bigint primary key,
    ends     bigint not null,
    earliest bigint not null,
    latest   bigint not null,
    times    bytea not null
);
comment on table keyledger.uses_blocks_v1 is 'Blocks of uses_v1, and the times of their events in milliseconds since 1970; times: of each message';

create table keyledger.uses_keyspaces_v1 (keyspace text collate "C" primary key);
comment on table keyledger.uses_keyspaces_v1 is 'Keyspaces that uses_v1 knows';

-- The same by source address. A hash is keyed with the master key; beside it stands
-- which data key the address is sealed with.
create table keyledger.addresses_v1 (
    starts   bigint not null,
    first    bigint not null,
    postings bytea not null,
    primary key (starts, first)
);
alter table keyledger.addresses_v1 alter column postings set storage external;
comment on table keyledger.addresses_v1 is 'Which messages of USAGE hold a source address, by its keyed hash';

create table keyledger.addresses_blocks_v1 (
    starts   bigint primary key,
    ends     bigint not null,
    earliest bigint not null,
    latest   bigint not null,
    times    bytea not null
);
comment on table keyledger.addresses_blocks_v1 is 'Blocks of addresses_v1, likewise';

create table keyledger.addresses_keyspaces_v1 (keyspace text collate "C" primary key);
comment on table keyledger.addresses_keyspaces_v1 is 'Keyspaces that addresses_v1 knows';

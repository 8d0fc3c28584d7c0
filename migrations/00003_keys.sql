-- +goose Up

create table keyledger.keys_v1 (
    id              text collate "C" primary key,
    keyspace        text collate "C" not null,
    owner           text collate "C" not null,
    name            text not null,
    environment     text collate "C" not null,
    plan            text collate "C" not null,
    scopes          text[] not null,
    resources       text[] not null,
    limits          jsonb not null,
    allowed_origins text[] not null,
    allowed_ips     text[] not null,
    meta            jsonb not null,
    role            text not null,
    reach           jsonb,
    first           text collate "C" not null,
    last            text collate "C" not null,
    created_at      timestamptz not null,
    created_by_type text not null,
    created_by_id   text not null,
    expires_at      timestamptz,
    rotated_at      timestamptz,
    earlier_until   timestamptz[] not null,
    revoked_at      timestamptz,
    revoke_reason   text not null,
    deleted_at      timestamptz,
    imported        boolean not null,
    version         bigint not null
) with (fillfactor = 85);
create index on keyledger.keys_v1 (keyspace, created_at desc, id desc) where deleted_at is null;
create index on keyledger.keys_v1 (keyspace, owner, created_at desc, id desc) where deleted_at is null;
create index on keyledger.keys_v1 (keyspace, expires_at) where deleted_at is null and expires_at is not null;
create index on keyledger.keys_v1 (keyspace, first) where deleted_at is null;
create index on keyledger.keys_v1 (keyspace, last) where deleted_at is null;
comment on table keyledger.keys_v1 is 'Keys as the facts that held left them; the current secret''s shown characters, never its hash';

create table keyledger.owners_v1 (
    keyspace   text collate "C" not null,
    id         text collate "C" not null,
    name       text not null,
    plan       text collate "C" not null,
    created_at timestamptz not null,
    version    bigint not null,
    primary key (keyspace, id)
);
comment on table keyledger.owners_v1 is 'Owners as the facts that held left them';

create table keyledger.keyspaces_v1 (
    id               text collate "C" primary key,
    document         jsonb not null,
    document_version int not null,
    last_used        text generated always as (document->>'last_used') stored,
    configured_at    timestamptz not null,
    version          bigint not null
);
comment on table keyledger.keyspaces_v1 is 'The keyspace documents in force';

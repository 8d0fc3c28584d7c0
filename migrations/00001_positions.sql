-- +goose Up

-- How far each projection has read. The row moves in the transaction that
-- writes the projection's rows, by compare-and-swap.
create table keyledger.positions (
    name       text collate "C" primary key,
    stream     text not null,
    sequence   bigint not null default 0,
    event_id   text not null default '',
    rebuilds   bigint not null default 0,
    state      text not null default 'starting',
    error      text not null default '',
    failed_at  bigint,
    moved_at   timestamptz not null default now()
);
comment on table keyledger.positions is 'How far each projection has read its stream';

-- Where the streams ended when a projector last looked, so that the lag can be
-- seen in SQL.
create table keyledger.heads (
    stream     text collate "C" primary key,
    sequence   bigint not null,
    seen_at    timestamptz not null
);
comment on table keyledger.heads is 'Last known end of each stream';

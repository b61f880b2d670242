//! Secrets: ChaCha20-Poly1305 under the key file's key, one row a [`SecretSlot`].
//!
//! The nonce is random (96 bits, drawn anew at each write); the row's place is authenticated with the
//! value, so that rows cannot be swapped. Invariant: plain values are in no column, error or `Debug`.

use gantry_common::secret::Secret;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sqlx::SqliteConnection;

use super::key_file::{self, Key, Keys};
use super::{Database, rows};
use crate::error::DatabaseError;
use crate::model::SecretSlot;

/// Bytes of a secret.
const SECRET_BYTES_MAX: usize = 64 << 10;

type Place = (String, String, String);

fn place(slot: &SecretSlot) -> Place {
    let (kind, owner, field) = slot.place();
    (kind.to_owned(), owner, field.to_owned())
}

fn associated((kind, owner, field): &Place) -> Vec<u8> {
    // No part can hold a zero byte's place: kinds and fields are ours, owners are checked.
    format!("gantry secret 1\0{kind}\0{owner}\0{field}").into_bytes()
}

fn cipher(key: &Key) -> Option<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, &key.bytes).ok().map(LessSafeKey::new)
}

fn seal(key: &Key, place: &Place, plain: &[u8]) -> Option<String> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).ok()?;
    let mut bytes = plain.to_vec();
    let aad = Aad::from(associated(place));
    let nonce_used = Nonce::assume_unique_for_key(nonce);
    cipher(key)?.seal_in_place_append_tag(nonce_used, aad, &mut bytes).ok()?;
    Some(rows::hex(&[&nonce[..], &bytes].concat()))
}

fn unseal(key: &Key, place: &Place, sealed: &str) -> Option<Secret> {
    let bytes = rows::unhex(sealed)?;
    let (nonce, body) = bytes.split_first_chunk::<NONCE_LEN>()?;
    let mut body = body.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let plain = cipher(key)?.open_in_place(nonce, Aad::from(associated(place)), &mut body).ok()?;
    Some(Secret::new(std::str::from_utf8(plain).ok()?))
}

fn unsealable((kind, owner, field): &Place) -> DatabaseError {
    DatabaseError::Unsealable(format!("{field} of {kind} {owner}"))
}

impl Database {
    /// Keeps a secret, or replaces the one that is there.
    ///
    /// # Errors
    /// It is too long, or its slot's name is no name.
    pub async fn set_secret(&self, slot: &SecretSlot, value: &Secret) -> Result<(), DatabaseError> {
        let keys = self.keys();
        let mut transaction = self.inner.writer.begin().await?;
        put(&mut transaction, &keys.current, slot, value).await?;
        transaction.commit().await?;
        self.changed();
        Ok(())
    }

    /// The secret at a place; nothing if none was set.
    ///
    /// # Errors
    /// [`DatabaseError::Unsealable`]: it was changed or moved.
    pub async fn secret(&self, slot: &SecretSlot) -> Result<Option<Secret>, DatabaseError> {
        let place = place(slot);
        let row: Option<(String, String)> = sqlx::query_as(
            "SELECT key_id, sealed FROM secrets WHERE owner_kind = $1 AND owner_id = $2 AND field = $3",
        )
        .bind(&place.0)
        .bind(&place.1)
        .bind(&place.2)
        .fetch_optional(&self.inner.readers)
        .await?;
        let Some((key, sealed)) = row else { return Ok(None) };
        let keys = self.keys();
        let key = keys.of(&key).ok_or_else(|| unsealable(&place))?;
        unseal(key, &place, &sealed).map(Some).ok_or_else(|| unsealable(&place))
    }

    /// Forgets a secret. Whether there was one.
    ///
    /// # Errors
    /// The engine's.
    pub async fn delete_secret(&self, slot: &SecretSlot) -> Result<bool, DatabaseError> {
        let (kind, owner, field) = place(slot);
        let done = sqlx::query(
            "DELETE FROM secrets WHERE owner_kind = $1 AND owner_id = $2 AND field = $3",
        )
        .bind(kind)
        .bind(owner)
        .bind(field)
        .execute(&self.inner.writer)
        .await?;
        self.changed();
        Ok(done.rows_affected() > 0)
    }

    /// Encrypts every secret anew, under a new key. A crash in the middle is made good at the next
    /// start: both keys are in the file until no row needs the old one.
    ///
    /// # Errors
    /// A secret cannot be read (nothing has changed then), the file cannot be written.
    pub async fn rekey(&self) -> Result<(), DatabaseError> {
        let older = self.keys().current;
        let keys = Keys { current: Key::draw()?, older: Some(older) };
        key_file::write(&self.inner.folder, &keys)?;
        self.set_keys(keys);
        self.finish_rekey().await
    }

    /// Moves what is under the older key to the current one, and forgets the older one.
    pub(super) async fn finish_rekey(&self) -> Result<(), DatabaseError> {
        let keys = self.keys();
        if keys.older.is_none() {
            return Ok(());
        }
        let mut transaction = self.inner.writer.begin().await?;
        let found: Vec<(String, String, String, String, String)> = sqlx::query_as(
            "SELECT owner_kind, owner_id, field, key_id, sealed FROM secrets WHERE key_id <> $1",
        )
        .bind(&keys.current.id)
        .fetch_all(&mut *transaction)
        .await?;
        for (kind, owner, field, key, sealed) in found {
            let place = (kind, owner, field);
            let key = keys.of(&key).ok_or_else(|| unsealable(&place))?;
            let value = unseal(key, &place, &sealed).ok_or_else(|| unsealable(&place))?;
            write(&mut transaction, &keys.current, &place, &value).await?;
        }
        transaction.commit().await?;
        self.changed();
        let keys = Keys { current: keys.current, older: None };
        key_file::write(&self.inner.folder, &keys)?;
        self.set_keys(keys);
        Ok(())
    }

    pub(super) fn keys(&self) -> Keys {
        self.inner.keys.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn set_keys(&self, keys: Keys) {
        *self.inner.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner) = keys;
    }
}

/// Keeps a secret within a transaction.
pub(super) async fn put(
    connection: &mut SqliteConnection,
    key: &Key,
    slot: &SecretSlot,
    value: &Secret,
) -> Result<(), DatabaseError> {
    let found = value.reveal().len();
    if found > SECRET_BYTES_MAX {
        return Err(DatabaseError::TooLarge { what: "a secret", found, max: SECRET_BYTES_MAX });
    }
    slot.validate()?;
    write(connection, key, &place(slot), value).await
}

async fn write(
    connection: &mut SqliteConnection,
    key: &Key,
    place: &Place,
    value: &Secret,
) -> Result<(), DatabaseError> {
    let sealed = seal(key, place, value.reveal().as_bytes()).ok_or_else(|| unsealable(place))?;
    sqlx::query(
        "INSERT INTO secrets (owner_kind, owner_id, field, key_id, sealed) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (owner_kind, owner_id, field) \
         DO UPDATE SET key_id = excluded.key_id, sealed = excluded.sealed",
    )
    .bind(&place.0)
    .bind(&place.1)
    .bind(&place.2)
    .bind(&key.id)
    .bind(sealed)
    .execute(connection)
    .await?;
    Ok(())
}

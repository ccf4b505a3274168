//! What every transform promises.
